"""A hundred steps of this trainer and of torch give the same weights."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from onnx_builder import Dense, Function
from onnx_builder.read import from_bytes
from sidecar.learning.head import Head
from sidecar.learning.optim.adam import Adam
from sidecar.learning.optim.clipping import clip_gradient
from sidecar.learning.optim.polyak import PolyakAverage
from sidecar.learning.optim.sgd import Sgd
from tests.onnx_builder.test_read import HEAD, HIDDEN, graph

torch = pytest.importorskip("torch", reason="torch is not installed: pip install '.[bench]'")


@pytest.mark.parametrize("activation", ["relu", "leaky_relu", "tanh", "gelu"])
@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
@pytest.mark.parametrize("widths", [(80, 64, 1), (6, 16, 8, 1)])
def test_hundred_steps(make_network, widths, optimizer, activation):
    head = Head(make_network(widths, activation))
    module = {"relu": torch.nn.ReLU, "leaky_relu": torch.nn.LeakyReLU, "tanh": torch.nn.Tanh, "gelu": torch.nn.GELU}[activation]
    layers = []
    for n_in, n_out in itertools.pairwise(widths):
        layers += [torch.nn.Linear(n_in, n_out), module()]
    model = torch.nn.Sequential(*layers[:-1])
    dense = [step for step in head.network().steps if hasattr(step, "weight")]
    with torch.no_grad():
        for linear, step in zip([m for m in model if isinstance(m, torch.nn.Linear)], dense, strict=True):
            linear.weight.copy_(torch.from_numpy(step.weight))
            linear.bias.copy_(torch.from_numpy(step.bias))
    if optimizer == "sgd":
        ours, rate = Sgd(head.parameters, head.gradient, 0.9, 1e-3), 1e-2
        theirs = torch.optim.SGD(model.parameters(), lr=rate, momentum=0.9, weight_decay=1e-3)
    else:
        ours, rate = Adam(head.parameters, head.gradient, 1e-3), 1e-3
        theirs = torch.optim.Adam(model.parameters(), lr=rate, weight_decay=1e-3)
    average = PolyakAverage(head.parameters, 0.9, warmup=False)
    averaged = torch.optim.swa_utils.AveragedModel(model, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(0.9))
    averaged.update_parameters(model)  # its first call copies

    rng = np.random.default_rng(3)
    for _ in range(100):
        rows = head.rows(rng.normal(size=(32, widths[0])), rng.uniform(0, 100, 32))
        head.loss_and_gradient(rows)
        clip_gradient(head.gradient, 1.0)
        ours.step(rate)
        average.update()

        theirs.zero_grad()
        torch.nn.functional.mse_loss(
            model(torch.from_numpy(rows[:, :-2].copy()))[:, 0], torch.from_numpy(rows[:, -1])
        ).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        theirs.step()
        averaged.update_parameters(model)

    def flat(net):
        parts = [m for m in net.modules() if isinstance(m, torch.nn.Linear)]
        return np.concatenate([np.column_stack([m.weight.detach(), m.bias.detach()]).ravel() for m in parts])

    assert np.abs(head.parameters - flat(model)).max() <= 1e-5 * np.abs(head.parameters).max()
    assert np.abs(average.parameters - flat(averaged)).max() <= 1e-5 * np.abs(head.parameters).max()


SPELLED = {
    "SiLU": "s = Sigmoid(h) g = Mul(h, s)", "Mish": "p = Softplus(h) t = Tanh(p) g = Mul(h, t)", "ELU": "g = Elu(h)",
    "SELU": "g = Selu(h)", "CELU": "g = Celu(h)", "Softplus": "g = Softplus(h)",
    "Hardswish": "g = HardSwish(h)", "Hardsigmoid": "g = HardSigmoid <alpha = 0.16666667> (h)", "Softsign": "g = Softsign(h)",
    "LogSigmoid": "s = Sigmoid(h) g = Log(s)", "PReLU": "g = PRelu(h, slope)", "Tanhshrink": "t = Tanh(h) g = Sub(h, t)",
    "Hardshrink": "p = Greater(h, half) m = Neg(h) q = Greater(m, half) o = Or(p, q) g = Where(o, h, zero)",
}  # fmt: skip


@pytest.mark.parametrize("name", SPELLED)
def test_a_hundred_steps_through_functions_of_a_graph(name):
    slope = np.float32(0.25)
    network = from_bytes(graph(f"{HIDDEN} {SPELLED[name]} {HEAD}", slope=slope).SerializeToString())
    head = Head(network)
    first, last = (step for step in network.steps if isinstance(step, Dense))
    model = torch.nn.Sequential(torch.nn.Linear(3, 4), getattr(torch.nn, name)(), torch.nn.Linear(4, 1))
    with torch.no_grad():
        for linear, step in ((model[0], first), (model[2], last)):
            linear.weight.copy_(torch.from_numpy(step.weight))
            linear.bias.copy_(torch.from_numpy(step.bias))
    ours, theirs = Sgd(head.parameters, head.gradient, 0.9, 0), torch.optim.SGD(model.parameters(), lr=1e-2, momentum=0.9)
    rng = np.random.default_rng(3)
    for _ in range(100):
        rows = head.rows(rng.normal(size=(32, 3)), rng.normal(size=32))
        head.loss_and_gradient(rows)
        ours.step(1e-2)
        theirs.zero_grad()
        torch.nn.functional.mse_loss(
            model(torch.from_numpy(rows[:, :-2].copy()))[:, 0], torch.from_numpy(rows[:, -1])
        ).backward()
        theirs.step()
    features = rng.normal(size=(200, 3)).astype(np.float32)
    with torch.no_grad():
        expected = model(torch.from_numpy(features)).numpy()[:, 0]
    assert np.abs(head.predict(features) - expected).max() <= 1e-4 * np.abs(expected).max()
    assert np.abs(network.forward(features) - expected).max() > 0.1  # it has learned
    if name == "PReLU":
        (function,) = (step for step in head.network().steps if isinstance(step, Function))
        assert function.constants[0] == pytest.approx(model[1].weight.item(), abs=1e-5)
        assert function.constants[0] != slope
