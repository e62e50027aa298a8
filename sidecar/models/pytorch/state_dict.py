"""A PyTorch state-dict (`.pt`, `.pth`, `.ckpt`) or `.safetensors` file as a `Network`, without torch.

The format is recognised by its content: the zip that torch.save writes, the stream that it wrote before torch 1.6, or
safetensors. float16, bfloat16 and float64 become float32. A plain chain of Linear layers is read, with BatchNorm, LayerNorm,
PReLU and weight_norm where there is no doubt what they do; anything else is refused, and the error names what does not fit.

Nothing in a file is ever executed: `unpickle` explains how.
"""

from __future__ import annotations

import re
import struct
import zipfile
from typing import Literal, NamedTuple, cast, get_args

import msgspec
import numpy as np

from onnx_builder.elementwise import Function
from onnx_builder.network import Activation, ActivationName, Elementwise, Network, NetworkError, Step
from onnx_builder.terms import Terms, spelled, steps_of
from sidecar.models.pytorch import archive
from sidecar.models.pytorch.checkpoint import Layers, joins, layers_of
from sidecar.models.pytorch.layers import Layer, chain, in_order_of_use, layers_in
from sidecar.models.pytorch.unpickle import quote

_DAMAGE = (EOFError, LookupError, MemoryError, OSError, OverflowError, RuntimeError, TypeError, ValueError)
"""What the readers raise, besides their own errors, for bytes that are not what they should be."""
_FUNCTIONS = {"silu": "Swish", "mish": "Mish", "hardswish": "HardSwish", "elu": "Elu", "selu": "Selu", "softplus": "Softplus"}
ACTIVATIONS = (*get_args(ActivationName), *_FUNCTIONS)
"""The names of what may be between the layers, with torch's own constants."""
_DECLARED = {name.replace("_", ""): name for name in ACTIVATIONS} | {"swish": "silu"}
_OUTPUT = re.compile(r"(?P<function>sigmoid|tanh|relu|identity)?(?P<rest>([*/+-]\d+(\.\d+)?)*)")
_OPERATORS: dict[str, Literal["Add", "Sub", "Mul", "Div"]] = {"*": "Mul", "/": "Div", "+": "Add", "-": "Sub"}


class StateDict(NamedTuple):
    """network: what was read. keys: of the weights, in the order in which they run. read_as: what was assumed, in words."""

    network: Network
    keys: tuple[str, ...]
    read_as: str


class Choices(NamedTuple):
    """What a state-dict does not say. activation: empty to take what the file declares, else `otherwise`.

    output: what is done to the last layer's value, such as `sigmoid*100` or `*23+79`; `identity` if nothing is. key: which of
    several dicts of tensors, or the beginning of its tensors' names.
    """

    activation: str | None = None
    otherwise: ActivationName = "relu"
    output: str = ""
    key: str = ""

    @property
    def given(self) -> bool:
        """Whether anything is said that only a state-dict needs."""
        return bool(self.activation or self.output or self.key)


def is_state_dict(data: bytes) -> bool:
    """Do these bytes begin like a zip archive, a pickle or a safetensors file? An ONNX model begins like none of these."""
    return data[:4] == b"PK\x03\x04" or data[:1] == b"\x80" or data[8:9] == b"{"


def from_bytes(data: bytes, choices: Choices = Choices()) -> StateDict:  # noqa: B008 (immutable)
    """The network in the bytes of a state-dict file. Raises NetworkError, which names the key or global, and the reason."""
    output = output_steps(choices.output)
    try:
        saved = archive.load(data)
        found = layers_of(saved.tree, choices.key)
        state = {key: saved.values(key, tensor) for key, tensor in found.tensors.items()}
        layers = in_order_of_use(layers_in(state), saved.in_order)
    except NetworkError:
        raise
    except (*_DAMAGE, struct.error, zipfile.BadZipFile, msgspec.DecodeError) as error:
        reason = (str(error).splitlines() or [""])[0][:200]
        raise NetworkError(f"damaged or truncated: {type(error).__name__}: {reason}") from error
    if joined := next(filter(joins, found.modules), None):
        raise NetworkError(f"module {quote(joined)}, by its name, is not part of a plain chain: export the model to ONNX")
    activation, why = _activation(found, choices)
    if not choices.output:
        _require_no_output_function(found, layers[-1])
    steps = (*chain(layers, _step(activation), found.modules), *output)
    kinds = [*dict.fromkeys(layer.what for layer in layers)]
    linear = [layer for layer in layers if layer.what == "Linear"]
    read_as = f"read as a plain chain of {', '.join(kinds)}"
    if any(isinstance(step, Activation | Function) for step in steps[: len(steps) - len(output)]) and "PReLU" not in kinds:
        read_as += f" and {activation}{why}"
    if norms := [kind for kind in kinds if kind in ("BatchNorm", "LayerNorm")]:
        read_as += f"; of {' and '.join(norms)}, torch's epsilon of 1e-5 is assumed, and no groups"
    return StateDict(Network(linear[0].widths[1], steps), tuple(layer.key for layer in linear), read_as)


def output_steps(text: str) -> tuple[Step, ...]:
    """What is done to the last layer's value, written like `sigmoid*100` or `*23+79`. Raises NetworkError for other text."""
    match = _OUTPUT.fullmatch(text.replace(" ", ""))
    if match is None:
        raise NetworkError(
            f"output {quote(text)}: expected sigmoid, tanh, relu, identity or nothing, then numbers with * / + or -, such as "
            "sigmoid*100 or *23+79"
        )
    function = match["function"] or "identity"
    numbers = re.findall(r"([*/+-])([\d.]+)", match["rest"])
    steps: list[Step] = [] if function == "identity" else [_step(function)]
    steps += [Elementwise(_OPERATORS[sign], np.array(number, dtype=np.float32)) for sign, number in numbers]
    return tuple(steps)


def _step(activation: str) -> Step:
    if activation not in _FUNCTIONS:
        return Activation(cast(ActivationName, activation))
    terms = Terms(require_room=lambda *arrays: None)
    (step,) = steps_of(spelled(terms, _FUNCTIONS[activation], {}, [terms.leaf()]), width=1)
    return step


def _activation(found: Layers, choices: Choices) -> tuple[str, str]:
    if choices.activation:
        return choices.activation, ""
    declared = dict(found.activation)
    for module in found.modules:
        name = re.sub(r"[\d_]+$", "", module.rpartition(".")[2]).lower().replace("_", "")
        if name in _DECLARED and name != "sigmoid":
            declared[module] = name
    if not declared:
        return choices.otherwise, f": a state-dict does not name its activation; {choices.otherwise} is assumed"
    if len({*declared.values()}) > 1 or (unknown := [name for name in declared.values() if name not in _DECLARED]):
        says = ", ".join(f"{where} says {name}" for where, name in list(declared.items())[:8])
        which = "which of these is between the layers" if len({*declared.values()}) > 1 else f"{unknown[0]} cannot be read"
        raise NetworkError(f"{says[:400]}; {which}: name it with train-offline --base-activation, or export to ONNX")
    where, name = next(iter(declared.items()))
    return _DECLARED[name], f" (named by {where})"


def _require_no_output_function(found: Layers, last: Layer) -> None:
    """Raises NetworkError if the file tells of something that follows the last layer."""
    parent, _, number = last.name.rpartition(".")
    for module in found.modules:
        above, _, name = module.rpartition(".")
        follows = above == parent and number.isdecimal() and name.isdecimal() and int(name) > int(number)
        if follows or re.fullmatch(r"sigmoid|softplus|(out|output|final|last)_?(act\w*|fn)", name, re.IGNORECASE):
            raise NetworkError(
                f"module {quote(module)} holds no weights and may be applied to the last layer's value: say what is with "
                "train-offline --base-output, such as sigmoid*100, or identity for nothing; or export the model to ONNX"
            )
    for where, name in found.at_the_end.items():
        raise NetworkError(f"{where} says {name}: say with train-offline --base-output what the output is, such as {name}*100")
