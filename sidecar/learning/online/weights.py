"""The weights in training: the live ones, their average, the optimizer, and the units that they are in."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import cast

import numpy as np

from onnx_builder.network import Array, Network
from onnx_builder.read import from_bytes
from onnx_builder.write import to_bytes
from sidecar.learning.conditioning import Conditioning, condition
from sidecar.learning.device.stacked import Device, Stacked
from sidecar.learning.head import Head
from sidecar.learning.optim import Optimizer
from sidecar.learning.optim.adam import Adam
from sidecar.learning.optim.clipping import clip_gradient
from sidecar.learning.optim.polyak import PolyakAverage
from sidecar.learning.optim.sgd import Sgd
from sidecar.learning.training_settings import TrainingSettings


class Weights:
    """Two networks of one architecture, the second the moving average of the first. device: where they train, None in numpy.

    live, ema: heads with the last step's weights and with their average; kept: with those to go back to. conditioning: the
    units that they are in (see `learning/conditioning.py`), None for the base model's own, to which `network` converts either
    head. averaged_steps: how many steps are in the average. The optimizer's momentum starts anew.
    """

    def __init__(
        self,
        settings: TrainingSettings,
        live: Network,
        ema: Network,
        kept: Network | None = None,
        conditioning: Conditioning | None = None,
        averaged_steps: int = 0,
        device: Device | None = None,
    ) -> None:
        self._settings, self._conditioning, self._device = settings, conditioning, device
        self._structure = to_bytes(live)  # the graph, with its first weights
        self.live = Head(live) if device is None else _on_device(live, device)
        parameters, gradient = self.live.parameters, self.live.gradient
        self._average = PolyakAverage(parameters, settings.ema_decay, settings.ema_warmup)
        self._average.parameters[:] = Head(ema).parameters
        self._average.steps = averaged_steps
        self.ema = self.live.at(self._average.parameters)
        self._kept = self._average.parameters.copy()
        if kept is not None:
            self._kept[:] = Head(kept).parameters
        self.kept = self.live.at(self._kept)
        self._optimizer: Optimizer
        if settings.optimizer == "sgd":
            self._optimizer = Sgd(parameters, gradient, settings.momentum, settings.weight_decay)
        else:
            self._optimizer = Adam(parameters, gradient, settings.weight_decay)
        if device is not None:
            from sidecar.learning.device.update import Update

            self._update = Update(
                cast(Stacked, parameters), cast(Stacked, gradient), settings.max_grad_norm, self._optimizer, self._average
            )
            self._run_update = device.program(self._update.operations())

    @property
    def has_units(self) -> bool:
        """Whether the units were measured on pairs."""
        return self._conditioning is not None

    def network(self, head: Head) -> Network:
        """The function of `live` or `ema`, in the base model's own units."""
        return self.in_base_units(head.network())

    def in_base_units(self, network: Network) -> Network:
        """A network in the units of `live`, in the base model's own."""
        return self._conditioning.remove(network) if self._conditioning else network

    def in_units_of(self, features: Array) -> Weights:
        """The same functions in units measured on features (n, n_features)."""
        conditioning = condition(self.network(self.live), features, self._settings.score_min, self._settings.score_max)
        live, ema, kept = (conditioning.apply(self.network(head)) for head in (self.live, self.ema, self.kept))
        return Weights(self._settings, live, ema, kept, conditioning, self._average.steps, self._device)

    def step(self, learning_rate: float) -> bool:
        """Step against the clipped gradient of `live`, and average. If it is not finite, returns False and changes nothing."""
        if self._device is not None:
            return self._step_on_device(learning_rate)
        if not clip_gradient(self.live.gradient, self._settings.max_grad_norm) < math.inf:
            return False
        self._optimizer.step(learning_rate)
        self._average.update()
        return True

    def _step_on_device(self, learning_rate: float) -> bool:
        self._optimizer.prepare(learning_rate)
        self._average.prepare()
        self._run_update()
        taken = bool(float(self._update.taken))
        if not taken:
            self._optimizer.steps -= 1
            self._average.steps -= 1
        return taken

    def keep(self) -> None:
        """Keep the average, to go back to it."""
        self._kept[:] = self._average.parameters

    def go_back(self, head: Head) -> None:
        """Continue from the weights of `ema` or `kept`, without momentum."""
        self.live.parameters[:] = head.parameters
        self._average.parameters[:] = head.parameters
        self._optimizer.load({name: np.zeros_like(values) for name, values in self._optimizer.state().items()})

    def is_finite(self) -> bool:
        """Whether no live weight has overflowed."""
        return math.isfinite(float(self.live.parameters.dot(self.live.parameters)))

    def undo(self) -> Callable[[], None]:
        """A function that restores the present weights, average and momentum."""
        live, ema, steps = self.live.parameters.copy(), self._average.parameters.copy(), self._average.steps
        optimizer = self._optimizer.state()

        def undo() -> None:
            self.live.parameters[:], self._average.parameters[:], self._average.steps = live, ema, steps
            self._optimizer.load(optimizer)

        return undo

    def state(self) -> dict[str, Array]:
        """All of this, as copies by name."""
        return {
            "structure": np.frombuffer(self._structure, dtype=np.uint8),
            "parameters": np.array(self.live.parameters),
            "average": np.array(self._average.parameters),
            "kept": np.array(self._kept),
            "average_steps": np.array(self._average.steps),
            **self._optimizer.state(),
            **(self._conditioning.state() if self._conditioning else {}),
        }

    @property
    def optimizer_keys(self) -> set[str]:
        """The names of the optimizer's part of a `state`."""
        return set(self._optimizer.state())

    @classmethod
    def from_state(cls, settings: TrainingSettings, state: Mapping[str, Array], device: Device | None = None) -> Weights:
        """Weights that continue from a `state`. If the optimizer's part is missing, the momentum starts anew.

        Raises KeyError, ValueError or NetworkError if the state was not made by `state`.
        """
        network = from_bytes(state["structure"].tobytes())
        conditioning = Conditioning.from_state(state) if "places" in state else None
        weights = cls(settings, network, network, network, conditioning, int(state["average_steps"]), device)
        weights.live.parameters[:] = state["parameters"]
        weights._average.parameters[:] = state["average"]
        weights._kept[:] = state.get("kept", state["average"])
        if weights.optimizer_keys <= state.keys():
            weights._optimizer.load(state)
        return weights


def _on_device(network: Network, device: Device) -> Head:
    from sidecar.learning.device.head import DeviceHead  # imported here, since most sidecars have no device

    return DeviceHead(network, device)
