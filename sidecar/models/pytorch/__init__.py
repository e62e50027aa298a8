"""PyTorch files as networks, without torch: nothing in a file is ever executed."""
