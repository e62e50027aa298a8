"""A fresh head: the network that training starts from where there is no base model."""

from __future__ import annotations

import math

import numpy as np

from onnx_builder.network import Activation, ActivationName, Clip, Dense, Elementwise, Network
from sidecar.learning.scaler import Scaling


def fresh_network(
    scaling: Scaling,
    generator: np.random.Generator,
    *,
    hidden: int,
    activation: ActivationName,
    score_range: tuple[float, float],
    feature_clip: float,
    weight_gain: float,
    bias_deviation: float,
) -> Network:
    """Scaling, a hidden layer of random weights, an output layer, and back to score points, clipped to their range.

    scaling: of the pairs that it will train on. hidden: width. score_range: lowest and highest score. feature_clip:
    deviations at which a scaled feature is cut off. weight_gain: share of the normal deviation of He et al. (2015,
    arXiv:1502.01852) that weights have; those of features that did not vary are zero, so that they have no say before
    they have been seen to matter. bias_deviation: of the hidden layer's biases, in standardised units.
    """
    n_features = len(scaling.offset)
    first = generator.normal(scale=weight_gain * math.sqrt(2 / n_features), size=(hidden, n_features)) * scaling.varying
    biases = generator.normal(scale=bias_deviation, size=hidden)
    last = generator.normal(scale=weight_gain * math.sqrt(2 / hidden), size=(1, hidden))
    return Network(
        n_features,
        (
            Elementwise("Sub", scaling.offset),
            Elementwise("Mul", scaling.factor),
            Clip(-feature_clip, feature_clip),
            Dense(first.astype(np.float32), biases.astype(np.float32)),
            Activation(activation),
            Dense(last.astype(np.float32), np.zeros(1, dtype=np.float32)),
            Elementwise("Mul", np.asarray(scaling.score_scale, dtype=np.float32)),
            Elementwise("Add", np.asarray(scaling.score_offset, dtype=np.float32)),
            Clip(*score_range),
        ),
    )
