"""Following the models of a sidecar, and predicting with them."""
