"""What a PyTorch file has beside its layers: which dict is the state-dict, and what else there is that a network would need.

Whatever may change the scores and is not part of the layers stops the reading: statistics, masks, a declared skip connection.
What belongs to training (optimizers, schedules, losses) is told by its name and skipped.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any, NamedTuple

from onnx_builder.network import NetworkError
from sidecar.models.pytorch.unpickle import Placeholder, Tensor, quote

_OPTIMIZERS = {"optim", "optimizer", "optimizers"}
_TRAINING = _OPTIMIZERS | {
    "sched", "schedule", "scheduler", "schedulers", "lr", "epoch", "epochs", "step", "steps", "iter", "iters", "iteration",
    "iterations", "loop", "loops", "callback", "callbacks", "rng", "random", "seed", "history", "loss", "losses", "metric",
    "metrics", "best", "grad", "gradient", "batch", "worker", "workers", "patience", "delta", "time", "amp", "rmse", "mse",
    "mae", "plcc", "srocc", "decay", "momentum", "betas", "dropout", "init", "logs", "version",
}  # fmt: skip
_STATISTICS = {
    "mean", "means", "mu", "std", "stds", "stddev", "sigma", "var", "variance", "scale", "scales", "scaler", "scaling",
    "shift", "offset", "offsets", "normalization", "normalisation", "normalizer", "normaliser", "normalize", "min", "max",
    "minimum", "maximum", "range", "median", "iqr", "quantile", "quantiles", "percentile", "stats", "statistics", "calib",
    "calibration", "multiplier", "divisor", "denominator", "norm", "slope", "intercept", "bias", "center", "centre",
    "temperature",
}  # fmt: skip
_SIZES = {
    "hidden", "layer", "layers", "dim", "dims", "size", "sizes", "width", "widths", "unit", "units", "shape", "arch",
    "milestones", "channels", "neurons", "gpus",
}  # fmt: skip
_ACTIVATIONS = {"activation", "activations", "act", "actfn", "nonlinearity"}
_FUNCTIONS = {
    "relu", "relu6", "leakyrelu", "prelu", "elu", "selu", "celu", "gelu", "silu", "swish", "mish", "hardswish", "softplus",
    "softsign", "tanh", "hardtanh", "sigmoid",
}  # fmt: skip
_AT_THE_END = {"output", "out", "final", "last", "head"}
_JOINS = {"residual", "residuals", "skip", "skips", "shortcut", "gate", "gates", "gating", "gated", "attn", "attention"}
_SCALED = {
    "normalize", "normalise", "normalized", "normalised", "standardize", "standardise", "standardized", "standardised", "clamp",
    "clip", "log1p",
}  # fmt: skip
_SCALERS = {*_SCALED, "scaler", "scalers", "scaling", "normalizer", "normaliser", "normalization", "normalisation"}
_NO_SCALERS = {
    "", "none", "no", "false", "off", "identity", "batch", "batchnorm", "batchnorm1d", "bn", "layer", "layernorm", "ln",
    "weight", "weightnorm",
}  # fmt: skip
"""What stands for none, or for layers that have tensors."""
_ARRAY = re.compile(r"numpy\.(.*\.)?(_reconstruct|_frombuffer|ndarray)|torch\._utils\._rebuild\w+|torch\._tensor\._rebuild\w+")
_MODULE = re.compile(r"torch\.(nn\.(modules\.activation|functional)|_C\._nn)\.(\w+)|torch\.(relu|tanh|sigmoid)")


class _Path(NamedTuple):
    """Where something is in a file: its key, and where the dict is that holds it. Shared, so that deep files cost little."""

    above: _Path | None
    key: object

    def keys(self) -> list[str]:
        keys: list[str] = []
        path = self
        while path.above is not None and len(keys) < 32:
            keys.append(str(path.key)[:80])
            path = path.above
        return keys[::-1]

    def __str__(self) -> str:
        return ".".join(self.keys())


_TOP = _Path(None, "")
_MOST_DEEP = 16


class Layers(NamedTuple):
    """The chosen dict. tensors: by name; modules: names that torch lists, without those that have tensors; activation,
    at_the_end: the activations that the file declares for hidden layers, and for the output, with where it does.
    """

    tensors: dict[str, Tensor]
    modules: tuple[str, ...]
    activation: dict[str, str]
    at_the_end: dict[str, str]


def words_of(name: object) -> set[str]:
    """The words in a name, in lower case: `featureMean_2` has feature and mean."""
    return {word.lower() for word in re.findall(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])", str(name)[:200])}


def joins(name: str) -> bool:
    """Whether a name says that its layer is not part of a plain chain."""
    return bool(words_of(name) & _JOINS)


def layers_of(tree: Any, key: str) -> Layers:
    """The tensors of the state-dict in a file. key: which one, or the beginning of its tensors' names; empty if there is one.

    Raises NetworkError if there are none or several, or if something else in the file would change the scores. With a key,
    only that is looked at.
    """
    if isinstance(tree, Placeholder):
        raise NetworkError(f"holds a {quote(tree.name)}, {_advice(tree.name)}; nothing was executed")
    if not isinstance(tree, dict):
        raise NetworkError(f"holds a {type(tree).__name__.lstrip('_')}; expected a state-dict")
    found: dict[str, dict[Any, Any]] = {}
    for path, each in _walk(tree, _OPTIMIZERS):
        if isinstance(each, dict) and _has_weights(each):
            found[str(path) if str(path) not in found else f"{path} ({len(found)})"] = each
    name, chosen = _chosen(tree, found, key)
    tensors = {}
    for each, value in chosen.items():
        if isinstance(value, Tensor) and not isinstance(each, str):
            raise NetworkError(f"a tensor has the key {quote(str(each))}; expected text")
        if isinstance(value, Tensor):
            tensors[each] = value
        elif value is not None:
            what = quote(value.name) if isinstance(value, Placeholder) else f"a {type(value).__name__.lower()}"
            raise NetworkError(
                f"{quote(str(_Path(_TOP, each)))}, among the tensors, is {what}, not a tensor; nothing was executed"
            )
    own = found.get(name, chosen)
    listed = [each.removeprefix(f"{key}.") for each in getattr(own, "modules", ()) if each]
    holders = set[str]()
    for parent in tensors:
        for _ in range(_MOST_DEEP):
            parent = parent.rpartition(".")[0]
            holders.add(parent)
    modules = tuple(each for each in listed if each not in holders)
    beside = _Beside()
    for path, value in _walk(tree, _TRAINING, without=own, placeholders=True):
        beside.see(path, value)
    if beside.unused and not key:
        alone = f"; or, if it changes nothing, read {quote(name)} alone: train-offline --base-key {name}" if name else ""
        raise NetworkError(
            f"{beside.unused}, beside the layers, may change the scores (a scaling, an order?) and is not part of them: export "
            f"the model to ONNX with it inside{alone}"
        )
    return Layers(tensors, modules, beside.activation, beside.at_the_end)


def _plain(name: str) -> str:
    """The name of a function, whatever it is written like: nn.LeakyReLU() is leakyrelu."""
    return name[-100:].removesuffix("()").rpartition(".")[2].lower().replace("_", "")


def _advice(name: str) -> str:
    if name.startswith("sklearn."):
        return "a scikit-learn model, which has no state-dict: convert it with skl2onnx"
    return "which is no state-dict: save model.state_dict() instead"


def _has_weights(each: dict[Any, Any]) -> bool:
    return any(isinstance(value, Tensor) and len(value.shape) > 1 and isinstance(key, str) for key, value in each.items())


def _chosen(tree: dict[Any, Any], found: dict[str, dict[Any, Any]], key: str) -> tuple[str, dict[Any, Any]]:
    if key and key in found:
        return key, found[key]
    if not found:
        holds = ", ".join(quote(str(_Path(_TOP, each))) for each in list(tree)[:8]) or "nothing"
        if any(isinstance(value, Tensor) for value in tree.values()):
            return "", tree  # without a matrix, for the messages
        for each, value in tree.items():
            if isinstance(value, Placeholder) and re.fullmatch(r"torch\.(\w+\.)*\w*Storage", value.name):
                holds = f"{quote(str(_Path(_TOP, each)))}, a tensor of a type that is not read: save it as float32"
                break
            if isinstance(value, Placeholder) and value.parts:
                holds = f"{quote(str(_Path(_TOP, each)))}, a {quote(value.name)}, {_advice(value.name)}"
                break
        raise NetworkError(f"no dict of tensors; it holds {holds}; nothing was executed")
    if key:
        parts = {
            name: {k[len(key) + 1 :]: v for k, v in each.items() if str(k).startswith(f"{key}.")}
            for name, each in found.items()
        }
        parts = {name: each for name, each in parts.items() if each}
        if len(parts) == 1:
            return parts.popitem()
        raise NetworkError(f"--base-key {quote(key)} names none of its dicts of tensors; there is {_listed(found)}")
    if len(found) > 1:
        raise NetworkError(f"{len(found)} dicts of tensors, {_listed(found)}: name one with train-offline --base-key")
    ((name, chosen),) = found.items()
    copies = _copies(chosen)
    if len(copies) > 1:
        raise NetworkError(f"{len(copies)} models in one dict, {_listed(copies)}: name one with train-offline --base-key")
    return name, chosen


def _listed(names: dict[str, Any]) -> str:
    return ", ".join(quote(name) for name in list(names)[:8]) + (", …" if len(names) > 8 else "")


def _copies(state: dict[Any, Any]) -> dict[str, Any]:
    """The beginnings of names under which the same layers are there several times, down to one score each."""
    shapes = {key: value.shape for key, value in state.items() if isinstance(key, str) and isinstance(value, Tensor)}
    prefix = ""
    for _ in range(_MOST_DEEP):
        groups: dict[str, dict[str, Any]] = {}
        for key, shape in shapes.items():
            if not key.startswith(prefix):
                continue
            first, dot, rest = key[len(prefix) :].partition(".")
            groups.setdefault(prefix + first if dot else "", {})[rest] = shape
        groups.pop("", None)
        groups = {name: group for name, group in groups.items() if sum(len(shape) == 2 for shape in group.values()) > 1}
        if len(groups) != 1:
            break
        prefix = f"{next(iter(groups))}."
    same = [*groups.values()]
    whole = all(group == same[0] for group in same) and any(
        len(shape) == 2 and shape[0] == 1 for shape in (same or [{}])[0].values()
    )
    return groups if whole else {}


def _walk(tree: Any, skipped: set[str], without: Any = None, placeholders: bool = False) -> Iterator[tuple[_Path, Any]]:
    """All that is in a saved object, each container once, with where it is; not what has one of these words in its key.

    without: an object that is left out. placeholders: whether to look into them, too.
    """
    waiting = [iter([(_TOP, tree)])]
    seen = {id(without)}
    while waiting:
        for path, value in waiting[-1]:
            parts: Iterator[tuple[_Path, Any]] | None = None
            # A GradScaler's has a growth_factor; an optimizer's is called by many names.
            if isinstance(value, dict) and "growth_factor" not in value and value.keys() != {"state", "param_groups"}:
                keys = (key for key in value if not words_of(key) & skipped and key != "_parameters")  # of a pickled module
                parts = iter([(_Path(path, key), value[key]) for key in keys])
            elif isinstance(value, list | tuple):
                parts = iter([(_Path(path, n) if isinstance(each, dict) else path, each) for n, each in enumerate(value)])
            elif isinstance(value, Placeholder) and placeholders:
                parts = iter([(path, each) for each in value.parts])
            if parts is not None:
                if id(value) in seen:
                    continue
                seen.add(id(value))
                waiting.append(parts)
            yield path, value
            if parts is not None:
                break
        else:
            waiting.pop()


class _Beside:
    """What is beside the layers: the first thing that may change the scores, in words, and which activations are declared."""

    def __init__(self) -> None:
        self.unused = ""
        self._path: _Path | None = None
        self.activation: dict[str, str] = {}
        self.at_the_end: dict[str, str] = {}

    def see(self, path: _Path, value: Any) -> None:
        if self.unused and not isinstance(value, str | Placeholder):
            return
        if path is not self._path:  # that of all parts of a list
            self._path, self._keys = path, path.keys() or [""]
            self._words = set[str]().union(*map(words_of, self._keys))
        keys, words = self._keys, self._words
        where = quote(".".join(keys))
        if isinstance(value, Placeholder) and (match := _MODULE.fullmatch(value.name)):
            self._declare(keys, match[3] or match[4])
        elif isinstance(value, str) and (words_of(path.key) & _ACTIVATIONS or _plain(value) in _FUNCTIONS):
            self._declare(keys, value)
        elif value is True and "sigmoid" in words:
            self.at_the_end[".".join(keys)] = "sigmoid"
        elif self.unused:
            return
        elif isinstance(value, str) and words & _SCALERS and _plain(value) not in _NO_SCALERS:
            self.unused = f"{where}, {value[:40]!r}"
        elif isinstance(value, bytes) and words & _SCALERS:
            self.unused = f"{where}, {len(value)} bytes"
        elif isinstance(value, Tensor):
            self.unused = f"{where}, a tensor of shape {value.shape}"
        elif isinstance(value, Placeholder) and _ARRAY.fullmatch(value.name):
            self.unused = f"{where}, an array"
        elif isinstance(value, list | tuple) and value and all(isinstance(each, int | float) for each in value):
            if not (words & _SIZES and all(isinstance(each, int) for each in value)):
                self.unused = f"{where}, {len(value)} numbers"
        elif isinstance(value, int) and value and words & _JOINS:
            self.unused = f"{where}, which says that there is a skip connection or a gate"
        elif isinstance(value, int) and value and words & _SCALED:
            self.unused = f"{where}, which says that values are scaled or clipped"
        elif isinstance(value, int | float) and not isinstance(value, bool) and words & _STATISTICS:
            self.unused = f"{where}, {value!r:.40}"
        elif isinstance(value, Placeholder) and value.name.endswith("multiarray.scalar") and words & _STATISTICS:
            self.unused = f"{where}, a number"

    def _declare(self, keys: list[str], activation: str) -> None:
        name = _plain(activation)
        into = self.at_the_end if words_of(keys[-1]) & _AT_THE_END else self.activation
        if name not in ("none", "identity", "linear") or into is self.activation:
            into[".".join(keys)] = name
