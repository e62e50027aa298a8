"""A head for each tenant: what tells its scores from those of others, on a trunk that learns from everybody's pairs."""
