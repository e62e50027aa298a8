"""The average of several networks as one network: what `train-offline --ensemble` publishes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import numpy as np

from onnx_builder.network import Activation, Array, Clip, Dense, Elementwise, Network, Step
from sidecar.learning.recipe import TrainingError


def average(networks: Sequence[Network]) -> Network:
    """A network whose score is the mean of theirs: each layer is theirs side by side, and the last one takes the mean.

    networks: of one architecture, k ≥ 1, that agree in all steps before the first dense layer and after the last. Between these
    they have dense layers, constants, clips and activations; a layer of m units becomes one of k · m. A clip after the last
    layer is applied to the mean. Hansen, Salamon: Neural network ensembles (1990).

    Raises TrainingError for other networks, which have no such average.
    """
    first = networks[0]
    if len(networks) == 1:
        return first
    dense = [place for place, step in enumerate(first.steps) if isinstance(step, Dense)]
    steps: list[Step] = []
    for place, each in enumerate(zip(*(network.steps for network in networks), strict=True)):
        if dense[0] <= place <= dense[-1]:
            steps.append(_side_by_side(each, place == dense[0], place == dense[-1]))
        elif _equal(each) and (place < dense[0] or isinstance(each[0], Clip | Elementwise)):
            steps.append(each[0])
        else:
            raise TrainingError(
                f"networks that differ in step {place} ({type(each[0]).__name__}) have no average as one network"
            )
    return Network(first.n_features, tuple(steps), first.inputs, first.output)


def _side_by_side(steps: tuple[Step, ...], first: bool, last: bool) -> Step:
    match steps[0]:
        case Dense():
            dense = cast(tuple[Dense, ...], steps)
            weights = [step.weight / len(steps) if last else step.weight for step in dense]
            biases = [step.bias / len(steps) if last else step.bias for step in dense]
            if last:
                bias = np.asarray(np.sum(biases, axis=0, dtype=np.float32))
                return Dense(np.asarray(np.sum(weights, axis=0)) if first else np.concatenate(weights, axis=1), bias)
            return Dense(np.concatenate(weights) if first else _block_diagonal(weights), np.concatenate(biases))
        case Elementwise(value=value) if value.ndim:
            constants = cast(tuple[Elementwise, ...], steps)
            return Elementwise(constants[0].operator, np.concatenate([step.value for step in constants]))
        case Activation() | Clip() | Elementwise() if _equal(steps):
            return steps[0]
        case other:
            raise TrainingError(f"networks with a {type(other).__name__} between layers have no average as one network")


def _block_diagonal(weights: Sequence[Array]) -> Array:
    (rows, columns), count = weights[0].shape, len(weights)
    matrix = np.zeros((count * rows, count * columns), dtype=np.float32)
    for place, weight in enumerate(weights):
        matrix[place * rows : (place + 1) * rows, place * columns : (place + 1) * columns] = weight
    return matrix


def _equal(steps: Sequence[Step]) -> bool:
    """Whether steps are the same."""
    if all(step is steps[0] for step in steps):
        return True
    described = [{name: np.asarray(value).tolist() for name, value in vars(step).items()} for step in steps]
    return all(each == described[0] for each in described)
