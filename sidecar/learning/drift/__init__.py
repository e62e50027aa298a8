"""Whether the features of arriving pairs are as they were."""
