"""The mathematics of training, in numpy alone and without I/O: head, optimizers, averaging, replay, scaling."""
