"""First-order optimizers on one flat vector, and what belongs to a step: clipping, learning rates, averaging, a proximal step.

An optimizer is bound to a parameter vector and its gradient. It keeps its state in arrays made once and lays its formula
out as a list of numpy calls: a step runs down the list and allocates nothing. Scalars are 0-dimensional arrays, which
numpy takes faster than Python's numbers. The formulae are those of torch.optim.
"""

from sidecar.learning.optim.adam import Adam
from sidecar.learning.optim.sgd import Sgd

Optimizer = Sgd | Adam
