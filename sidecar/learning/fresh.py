"""A fresh head: the network that training starts from where there is no base model."""

from __future__ import annotations

import math

import numpy as np

from onnx_builder.network import Activation, ActivationName, Clip, Dense, Elementwise, Network
from sidecar.learning.scaler import Scaling

INITIAL_GAIN = 0.3
"""Share of He's standard deviation; smaller initial weights start nearer to a linear model."""


def fresh_network(
    scaling: Scaling,
    hidden: int,
    activation: ActivationName,
    score_range: tuple[float, float],
    generator: np.random.Generator,
) -> Network:
    """Scaling, a hidden layer of random weights, an output layer, and back to score points, clipped to their range.

    Weights are normal with INITIAL_GAIN of the deviation of He et al. (2015, arXiv:1502.01852); those of features that
    did not vary are zero, so that they have no say before they have been seen to matter.
    """
    n_features = len(scaling.offset)
    first = generator.normal(scale=INITIAL_GAIN * math.sqrt(2 / n_features), size=(hidden, n_features)) * scaling.varying
    last = generator.normal(scale=INITIAL_GAIN * math.sqrt(2 / hidden), size=(1, hidden))
    return Network(
        n_features,
        (
            Elementwise("Sub", scaling.offset),
            Elementwise("Mul", scaling.factor),
            Dense(first.astype(np.float32), np.zeros(hidden, dtype=np.float32)),
            Activation(activation),
            Dense(last.astype(np.float32), np.zeros(1, dtype=np.float32)),
            Elementwise("Mul", np.asarray(scaling.score_scale, dtype=np.float32)),
            Elementwise("Add", np.asarray(scaling.score_offset, dtype=np.float32)),
            Clip(*score_range),
        ),
    )
