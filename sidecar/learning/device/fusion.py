"""From recorded calls to kernels: neighbouring elementwise calls on arrays of one shape become one kernel.

Most calls of a step touch each number once and do little with it, so each costs its start and its way to memory and back. In
one kernel, a number is loaded once, passes through all of them in registers, and is stored only if something reads it later.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

from sidecar.learning.device.stacked import Call, Stacked

EXPRESSIONS = {
    "add": "{0} + {1}",
    "subtract": "{0} - {1}",
    "multiply": "{0} * {1}",
    "divide": "{0} / {1}",
    "power": "pow({0}, {1})",
    "maximum": "({0} >= {1} || {0} != {0}) ? {0} : {1}",  # not fmax, which loses what is not a number
    "minimum": "({0} <= {1} || {0} != {0}) ? {0} : {1}",
    "negative": "-{0}",
    "absolute": "fabs({0})",
    "sign": "{0} > 0 ? 1 : {0} < 0 ? -1 : {0}",
    "heaviside": "{0} > 0 ? 1 : {0} < 0 ? 0 : {0} == 0 ? {1} : {0}",
    "copysign": "copysign({0}, {1})",
    "reciprocal": "1 / {0}",
    "sqrt": "sqrt({0})",
    "exp": "exp({0})",
    "expm1": "expm1({0})",
    "log": "log({0})",
    "logaddexp": "({0} > {1} ? {0} : {1}) + log1p(exp(-fabs({0} - {1})))",
    "tanh": "tanh({0})",
    "equal": "{0} == {1}",
    "less": "{0} < {1}",
    "greater": "{0} > {1}",
    "right_shift": "{0} >> {1}",
    "bitwise_and": "{0} & {1}",
    "copyto": "{0}",
}
"""Elementwise functions of numpy, by name, in C."""
_TYPES = {"float32": "float", "int32": "int", "bool": "bool"}


class Place(NamedTuple):
    """Where an array is in memory, and how: equal for two arrays if they are the same numbers in the same order."""

    start: int
    stop: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    dtype: str

    @classmethod
    def of(cls, data: Any) -> Place:
        pointer = getattr(data.data, "ptr", None)  # of CuPy
        start = int(data.__array_interface__["data"][0] if pointer is None else pointer)
        reach = sum((size - 1) * stride for size, stride in zip(data.shape, data.strides, strict=True))
        return cls(start, start + reach + data.itemsize, tuple(data.shape), tuple(data.strides), str(data.dtype))

    def overlaps(self, other: Place) -> bool:
        return self.start < other.stop and other.start < self.stop


@dataclass
class Group:
    """Calls that become one kernel, or one call that is none. read, written: arrays; read are those needed from before."""

    calls: list[Call] = field(default_factory=list)
    read: dict[Place, Stacked] = field(default_factory=dict)
    written: dict[Place, Stacked] = field(default_factory=dict)

    def add(self, call: Call) -> None:
        self.calls.append(call)
        out = Place.of(call.out.data)
        for each in (*call.inputs, call.where, *([call.out] if call.where is not None else [])):
            if isinstance(each, Stacked):
                place = Place.of(each.data)
                if place not in self.written:
                    self.read[place] = each
        self.written[out] = call.out

    def takes(self, call: Call) -> bool:
        """Whether a call can join: it has the same shape, and no array is read or written in two different orders."""
        if not self.calls or call.name not in EXPRESSIONS or self.calls[0].name not in EXPRESSIONS:
            return not self.calls
        if call.out.shape != self.calls[0].out.shape:
            return False
        out = Place.of(call.out.data)
        arrays = [each for each in (*call.inputs, call.where) if isinstance(each, Stacked)]
        clash = any(out.overlaps(each) and out != each for each in (*self.read, *self.written))
        return not clash and not any(
            place.overlaps(each) and place != each
            for place in (Place.of(array.data) for array in arrays)
            for each in self.written
        )


@dataclass(frozen=True)
class Kernel:
    """arrays: all that it takes, in order; inputs: how many of them are only read; parameters: of each, its type and name.

    code: its body for CuPy's `ElementwiseKernel`. source: the same as a kernel of its own, "fused", for arrays that lie flat in
    memory; None if they do not. It takes how many times `width` numbers a model has, then for each array its address and its
    step from model to model (`steps`).
    """

    arrays: list[Stacked]
    inputs: int
    parameters: list[str]
    code: str
    source: str | None
    width: int
    steps: list[int]


def grouped(calls: Sequence[Call]) -> list[Group]:
    """Calls in their order, neighbours that can be one kernel together."""
    groups = [Group()]
    for call in calls:
        if not groups[-1].takes(call):
            groups.append(Group())
        groups[-1].add(call)
    return groups


def needless(groups: Sequence[Group], results: Sequence[Stacked]) -> list[set[Place]]:
    """For each group the arrays that it need not store: nothing reads them before they are written again.

    The groups run round and round, and only they and whoever looks at the results read what they write.
    """
    kept = [Place.of(each.data) for each in results]
    return [
        {
            place
            for place in group.written
            if not any(place.overlaps(each) for each in kept) and not _is_read(place, [*groups[at + 1 :], *groups[: at + 1]])
        }
        for at, group in enumerate(groups)
    ]


def _is_read(place: Place, groups: Sequence[Group]) -> bool:
    for group in groups:
        if any(place.overlaps(each) for each in group.read):
            return True
        if place in group.written:
            return False
    return False


def kernel(group: Group, needless: AbstractSet[Place] = frozenset()) -> Kernel:
    """The kernel of elementwise calls."""
    stored = {place: array for place, array in group.written.items() if place not in needless}
    inputs = {place: array for place, array in group.read.items() if place not in stored}
    arrays = {**inputs, **stored}
    names = {place: f"a{number}" for number, place in enumerate(dict.fromkeys([*arrays, *group.written]))}
    lines = []
    for call in group.calls:
        operands = [_operand(each, names, call.out.dtype) for each in call.inputs]
        condition = "" if call.where is None else f"if (v_{names[Place.of(call.where.data)]}) "
        lines.append(f"{condition}v_{names[Place.of(call.out.data)]} = {EXPRESSIONS[call.name].format(*operands)};")
    declared = [
        f"{_TYPES[place.dtype]} v_{name}{{}};".format(f" = {name}" if place in group.read else "")
        for place, name in names.items()
    ]
    code = [*declared, *lines, *(f"{names[place]} = v_{names[place]};" for place in stored)]
    sizes = [_flat_size(place) for place in arrays]
    count, width = group.calls[0].out.size, 0
    source = None
    if all(size in (1, count) for size in sizes):
        width = (
            4
            if count % 4 == 0 and all(_is_aligned(place) for place, size in zip(arrays, sizes, strict=True) if size > 1)
            else 1
        )
        source = _source(names, group, arrays, stored, lines, count, width)
    return Kernel(
        [*arrays.values()],
        len(inputs),
        [f"{place.dtype} {names[place]}" for place in arrays],
        "\n".join(code),
        source,
        width,
        [0 if place.shape[0] == 1 else place.strides[0] // np.dtype(place.dtype).itemsize for place in arrays],
    )


def _flat_size(place: Place) -> int:
    """How many numbers an array has in each model, if they follow each other in memory, else 0."""
    size = 1
    for length, stride in zip(reversed(place.shape[1:]), reversed(place.strides[1:]), strict=True):
        if length != 1 and stride != size * np.dtype(place.dtype).itemsize:
            return 0
        size *= length
    return size


def _is_aligned(place: Place) -> bool:
    """Whether each model's numbers begin where four of them can be loaded at once."""
    four = 4 * np.dtype(place.dtype).itemsize
    return place.start % four == 0 and (place.shape[0] == 1 or place.strides[0] % four == 0)


def _source(
    names: dict[Place, str],
    group: Group,
    arrays: Iterable[Place],
    stored: Iterable[Place],
    lines: Sequence[str],
    count: int,
    width: int,
) -> str:
    """A kernel with a row of blocks for each model; each thread takes `width` numbers at a time."""
    single = {place for place in arrays if count > 1 and _flat_size(place) == 1}
    many = [place for place in arrays if place not in single]
    local = [place for place in names if place not in arrays]

    def declared(place: Place, value: str) -> str:
        return f"{_TYPES[place.dtype]} v_{names[place]}{value};"

    parameters = ", ".join(f"{_TYPES[place.dtype]}* {names[place]}, long long s_{names[place]}" for place in arrays)
    return "\n".join([
        "template <typename T> struct alignas(sizeof(T) * WIDTH) Some { T each[WIDTH]; };".replace("WIDTH", str(width)),
        f'extern "C" __global__ void fused(long long count, {parameters}) {{',
        *(f"{names[place]} += blockIdx.y * s_{names[place]};" for place in arrays),
        *(declared(place, f" = *{names[place]}") for place in single),
        "long long thread = blockIdx.x * (long long)blockDim.x + threadIdx.x, threads = (long long)gridDim.x * blockDim.x;",
        "for (long long i = thread; i < count; i += threads) {",
        *(
            f"{_some(place)} n_{names[place]}" + (f" = (({_some(place)}*){names[place]})[i];" if place in group.read else ";")
            for place in many
        ),
        f"#pragma unroll\nfor (int k = 0; k < {width}; ++k) {{",
        *(declared(place, f" = n_{names[place]}.each[k]" if place in group.read else "") for place in many),
        *(declared(place, "") for place in local),
        *lines,
        *(f"n_{names[place]}.each[k] = v_{names[place]};" for place in stored),
        "}",
        *(f"(({_some(place)}*){names[place]})[i] = n_{names[place]};" for place in stored),
        "}}",
    ])  # fmt: skip


def _some(place: Place) -> str:
    return f"Some<{_TYPES[place.dtype]}>"


def _operand(value: Any, names: dict[Place, str], dtype: np.dtype[Any]) -> str:
    if isinstance(value, Stacked):
        return f"v_{names[Place.of(value.data)]}"
    if dtype.kind == "i":
        return str(int(value))
    number = float(np.float32(value))
    return f"{number!r}f" if np.isfinite(number) else 'nanf("")' if np.isnan(number) else f"{'-' * (number < 0)}INFINITY"
