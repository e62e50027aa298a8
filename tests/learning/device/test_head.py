"""A head on a device, and its steps, against the same in numpy."""

from __future__ import annotations

import numpy as np
import pytest

from onnx_builder import Dense, Network
from onnx_builder.elementwise import Function, Node
from sidecar.learning.conditioning import condition
from sidecar.learning.derivatives import DERIVATIVES
from sidecar.learning.device.head import DeviceHead
from sidecar.learning.device.update import Update
from sidecar.learning.head import Head
from sidecar.learning.optim.adam import Adam
from sidecar.learning.optim.clipping import clip_gradient
from sidecar.learning.optim.polyak import PolyakAverage
from sidecar.learning.optim.sgd import Sgd
from tests.devices import devices
from tests.host_device import HostDevice
from tests.learning.test_derivatives import FUNCTIONS, NUMBERS, OF_TWO
from tests.learning.test_head import ACTIVATIONS, BASE_MODEL_SHAPES, some_pairs

STEPS = {**BASE_MODEL_SHAPES, **FUNCTIONS}
OPTIMIZERS = {"sgd": (Sgd, 1e-3), "adam": (Adam, 3e-4)}


def trained(network, optimizer, steps, device=None, pairs=None, n=32, spoiled=()):
    """Steps of a head on its own in numpy, or on a device. spoiled: steps whose gradient is made infinite."""
    head = Head(network) if device is None else DeviceHead(network, device)
    head.bound_errors(0.5)
    kind, rate = OPTIMIZERS[optimizer]
    method = kind(head.parameters, head.gradient, weight_decay=1e-4)
    average = PolyakAverage(head.parameters, 0.99)
    if device is not None:
        update = Update(head.parameters, head.gradient, 1.0, method, average)
        run = device.program(update.operations())
    rows, losses = head.rows(*(pairs or some_pairs(network.n_features, 4 * n))), []
    for step in range(steps):
        losses.append(head.loss_and_gradient(rows[step * n % len(rows) :][:n]))
        if step in spoiled:
            head.gradient[3:4] = np.inf
        if device is not None:
            method.prepare(rate)
            average.prepare()
            run()
            if not float(update.taken):
                method.steps, average.steps = method.steps - 1, average.steps - 1
        elif np.isfinite(clip_gradient(head.gradient, 1.0)):
            method.step(rate)
            average.update()
    return head, np.asarray(head.parameters), np.asarray(average.parameters), losses


def assert_close(ours, theirs):
    for one, other in zip(ours[1:], theirs[1:], strict=True):
        assert np.linalg.norm(np.subtract(one, other)) <= 1e-4 * np.linalg.norm(other)


@devices
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("widths", [(6, 1), (80, 64, 1), (80, 33, 7, 1)])
def test_a_thousand_steps_end_where_they_do_in_numpy(example, make_network, widths, activation, optimizer, open_device):
    """On real pairs, in the units in which they are trained on; in others, one ulp in the weights may move numpy's result more.

    A hundred steps of the device that is numpy.
    """
    order = np.random.default_rng(9).permutation(len(example))
    features, scores = example.features[order, : widths[0]].astype(np.float32), example.true_score[order]
    network = condition(make_network(widths, activation), features, 0, 100).apply(make_network(widths, activation))
    steps = 100 if open_device is HostDevice else 1000
    ours = trained(network, optimizer, steps, open_device(1), (features, scores))
    assert_close(ours, trained(network, optimizer, steps, pairs=(features, scores)))
    np.testing.assert_allclose(ours[0].predict(features), ours[0].network().forward(features), rtol=1e-4, atol=1e-3)


@devices
@pytest.mark.parametrize("name", STEPS)
def test_what_base_models_are_made_of_trains_as_in_numpy(name, open_device):
    network = Network(6, STEPS[name])
    assert_close(trained(network, "sgd", 50, open_device(1)), trained(network, "sgd", 50))


@devices
@pytest.mark.parametrize("operator", DERIVATIVES)
def test_every_operator_of_functions_trains_as_in_numpy(operator, open_device):
    rng = np.random.default_rng(3)
    weights = [0.3 * rng.normal(size=shape).astype(np.float32) for shape in [(5, 6), 5, 5, (1, 5), 1]]
    operands = (4, 1) if operator in OF_TWO else (4,)
    above_zero = Node("Mul", (0, 0)), Node("Add", (3, 2))
    nodes = (*above_zero, Node(operator, operands, NUMBERS.get(operator, ())))
    function = Function((abs(weights[2]) + 1, np.float32([0.5] * 5)), nodes)
    network = Network(6, (Dense(*weights[:2]), function, Dense(*weights[3:])))
    assert_close(trained(network, "sgd", 5, open_device(1)), trained(network, "sgd", 5))


@devices
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_a_step_that_is_not_finite_is_left_out_on_the_device(make_network, optimizer, open_device):
    network = make_network((6, 5, 1), "tanh")
    ours = trained(network, optimizer, 20, open_device(1), spoiled=(0, 7, 8))
    assert_close(ours, trained(network, optimizer, 20, spoiled=(0, 7, 8)))
