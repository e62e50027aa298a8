"""What a graph does to each value between two layers, as terms, and the steps of a network that terms become.

A `Term` is an operator on other terms and constants; where it begins, at the result of a layer, it is a leaf. Operators that
`elementwise.py` does not have are spelled here as what they are made of. A comparison becomes 0 or 1, by two HardSigmoids so
steep that no number lies between them, and Where a weighted sum.

`steps_of` cuts a term where all paths through it meet. A part of one node becomes a constant or an activation, a part of
several a GELU, a layer normalisation, or else a `Function`.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import reduce
from typing import Any

import numpy as np

from onnx_builder.elementwise import ATTRIBUTES, OPERATORS, Array, Float32, Function, Node, evaluate
from onnx_builder.network import Activation, Clip, Elementwise, LayerNormalization, NetworkError, Step

MAX_TERMS = 10_000
_STEEP = (1e38, 0.0)
"""HardSigmoid with these takes the least float32 to 1e-7, and that to 1."""
_GELU_TOLERANCE = 2e-4
"""How far off √2 may be in a GELU, since float16 rounds it."""
_MOST_COMPARED = 200_000
"""So many values of a row and its terms are compared with a layer normalisation, at most."""
_WHOLE = {"Add", "Sub", "Mul", "Neg", "Abs", "Max", "Min"}
_MAY_OVERFLOW = {"Exp", "Log", "Sqrt", "Pow"}
_ELSEWHERE = (0.5, -0.5, 50.0)
"""What functions that are not finite everywhere get in place of values that they do not take: the first that they can."""
NEUTRAL = {"Add": 0, "Sub": 0, "Mul": 1, "Div": 1}
_ACTIVATIONS = {"Relu": "relu", "Tanh": "tanh", "Sigmoid": "sigmoid"}


class Term:
    """An operator on terms and constants; a leaf, the result of a layer, has none. place: later terms have larger ones.

    may_overflow: some finite values of the leaf may give infinity or NaN. per_row: all values of a row are the same.
    """

    __slots__ = ("leaf", "may_overflow", "numbers", "operands", "operator", "per_row", "place")

    def __init__(self, place: int, operator: str = "", operands: tuple[Any, ...] = (), numbers: tuple[float, ...] = ()) -> None:
        self.place, self.operator, self.operands, self.numbers = place, operator, operands, numbers
        terms = self.terms
        self.leaf: Term = terms[0].leaf if terms else self
        divides = operator == "Div" and isinstance(operands[1], Term)
        self.may_overflow: bool = operator in _MAY_OVERFLOW or divides or any(term.may_overflow for term in terms)
        self.per_row: bool = operator == "ReduceMean" or (bool(terms) and all(term.per_row for term in terms))

    @property
    def terms(self) -> list[Term]:
        return [operand for operand in self.operands if isinstance(operand, Term)]


class Terms:
    """Makes terms, and evaluates operators whose operands are all constants.

    require_room: called with arrays before what they broadcast to is made.
    """

    def __init__(self, require_room: Callable[..., None]) -> None:
        self._require_room = require_room
        self._count = 0
        self._comparisons: dict[Term, tuple[Term, Array, bool]] = {}  # a term, a constant, and whether the term is larger

    def leaf(self) -> Term:
        return self._made(Term(self._count))

    def __call__(self, operator: str, *operands: Any, numbers: tuple[float, ...] = ()) -> Any:
        """An operator of `elementwise.py`, or ReduceMean, along the row, on terms and constants.

        Terms take constants of shape () or (width,), float32. Raises NetworkError for an operator that cannot be trained
        through, and for terms that begin at different layers.
        """
        terms = [operand for operand in operands if isinstance(operand, Term)]
        if not terms:
            return self._folded(operator, operands, numbers)
        if any(term.leaf is not terms[0].leaf for term in terms):
            raise NetworkError(
                "a skip connection: it joins values from before and after a layer; a regressor is a chain of layers"
            )
        last = operands[-1]
        if operator == "Div" and not isinstance(last, Term) and not last.all():
            raise NetworkError("divides by a constant that has zeros")
        if operator == "PRelu" and (len(terms) > 1 or terms[0] is last):
            raise NetworkError("its slope is not constant")
        if operator == "Pow" and (len(terms) > 1 or (terms[0] is last and not (operands[0] > 0).all())):
            raise NetworkError("Pow takes a constant exponent, or a constant base above 0")
        if operator in ("Max", "Min") and len(terms) == 1:
            bound = operands[0] if terms[0] is last else last
            if bound.size == 1:
                numbers = (float(bound.reshape(())), math.inf) if operator == "Max" else (-math.inf, float(bound.reshape(())))
                return self._made(Term(self._count, "Clip", (terms[0],), numbers))
        return self._made(Term(self._count, operator, operands, numbers))

    def _made(self, term: Term) -> Term:
        self._count += 1
        if self._count > MAX_TERMS:
            raise NetworkError(f"more than {MAX_TERMS} operators, with what they are made of")
        return term

    def _folded(self, operator: str, arrays: Sequence[Array], numbers: tuple[float, ...]) -> Array:
        self._require_room(*arrays)
        dtype = np.result_type(*arrays)
        if dtype.kind in "iub" and (operator not in _WHOLE or numbers):
            raise NetworkError(f"{operator} of whole numbers is not folded")
        out = np.empty(np.broadcast_shapes(*(array.shape for array in arrays)), dtype=dtype)
        with np.errstate(all="ignore"):
            OPERATORS[operator](out, np.empty_like(out), *arrays, *numbers)
        return out

    def above(self, a: Any, b: Any) -> Any:
        """1 where a > b, else 0."""
        if not isinstance(a, Term) and not isinstance(b, Term):
            self._require_room(a, b)
            return a > b
        difference = a if _is_zero(b) else self("Sub", a, b)
        above = self("HardSigmoid", self("HardSigmoid", difference, numbers=_STEEP), numbers=_STEEP)
        if not isinstance(b, Term):
            self._comparisons[above] = (a, b, True)
        elif not isinstance(a, Term):
            self._comparisons[above] = (b, a, False)
        return above

    def equal(self, a: Any, b: Any) -> Any:
        if a is b:
            return np.array(True)  # of a number; features are finite
        if not isinstance(a, Term) and not isinstance(b, Term):
            self._require_room(a, b)
            return a == b
        return self.negated(self.above(self("Abs", self("Sub", a, b)), _number(0)))

    def negated(self, condition: Any) -> Any:
        """1 where a condition is 0, and 0 where it is 1."""
        if not isinstance(condition, Term):
            return ~condition.astype(bool)
        negated = self("Sub", _number(1), condition)
        if condition in self._comparisons:
            term, bound, larger = self._comparisons[condition]
            self._comparisons[negated] = (term, bound, not larger)
        return negated

    def where(self, condition: Any, a: Any, b: Any) -> Any:
        """a where a condition is 1, and b where it is 0.

        What is not chosen is multiplied by 0, which needs finite numbers. So what may overflow is computed from values on
        its own side of the condition's bound. Raises NetworkError where that is not possible.
        """
        if not isinstance(condition, Term):
            if condition.size == 1:
                return a if condition.reshape(()) else b
            if not isinstance(a, Term) and not isinstance(b, Term):
                self._require_room(condition, a, b)
                return np.where(condition.astype(bool), a, b)
        a, b = self._guarded(a, condition, True), self._guarded(b, condition, False)
        otherwise = self.negated(condition) if isinstance(condition, Term) else 1 - condition
        return self("Add", self("Mul", condition, a), self("Mul", otherwise, b))

    def _guarded(self, chosen: Any, condition: Any, where_true: bool) -> Any:
        if not isinstance(chosen, Term) or not chosen.may_overflow:
            return chosen
        if isinstance(condition, Term) and condition in self._comparisons:
            term, bound, larger = self._comparisons[condition]
            elsewhere = self._replaced(chosen, term, bound)
            if not isinstance(elsewhere, Term) and np.isfinite(elsewhere).all():
                return self._replaced(chosen, term, self("Max" if larger == where_true else "Min", term, bound))
        raise NetworkError("what it does not choose may be infinite or not a number; that is not supported")

    def selected(self, root: Term, places: Array) -> Any:
        """The same term of some of a row's values."""

        def select(operator: str, constant: Array) -> Array:
            self._require_room(constant)
            return constant[places]

        self._require_no_mean(root)
        return self._replaced(root, root.leaf, root.leaf, select)

    def spread(self, root: Term, places: Array, width: int) -> Any:
        """The same term of the values at these places of a row of so many; at the others it is some finite number.

        What may overflow is computed from a constant there. Raises NetworkError if that is not finite either.
        """

        def spread(operator: str, constant: Array) -> Array:
            self._require_room(np.broadcast_to(constant[:1], width))
            row = np.full(width, NEUTRAL.get(operator, constant[0]), dtype=np.float32)
            row[places] = constant
            return row

        start: Any = root.leaf
        if len(places) < width:
            self._require_no_mean(root)
        if len(places) < width and root.may_overflow:
            own = np.isin(np.arange(width), places)
            for value in _ELSEWHERE:
                result = self._replaced(root, root.leaf, _number(value), spread)
                if np.isfinite(result[~own] if result.ndim else result).all():
                    break
            else:
                raise NetworkError(f"is of only some values, and not finite at {_ELSEWHERE}: give the model these alone")
            start = self("Add", self("Mul", start, own.astype(np.float32)), np.where(own, 0, value).astype(np.float32))
        return self._replaced(root, root.leaf, start, spread)

    def joined(self, terms: Sequence[Term], widths: Sequence[int]) -> Any:
        """What terms of one leaf give, as many values as the widths say, one after the other in a row.

        If all of them only scale, that is a scaling of the row; else the sum of all, each 0 where it does not belong.
        """
        width = sum(widths)
        scalings = [steps_of(term, width) for term in terms]
        if all(isinstance(step, Elementwise) for steps in scalings for step in steps):
            return self._scaled(terms[0].leaf, scalings, widths)  # type: ignore[arg-type]
        places = np.split(np.arange(width), np.cumsum(widths)[:-1])
        parts = []
        for term, own in zip(terms, places, strict=True):
            self._require_room(np.broadcast_to(_number(1), width))
            parts.append(self("Mul", self.spread(term, own, width), np.isin(np.arange(width), own).astype(np.float32)))
        return reduce(lambda a, b: self("Add", a, b), parts)

    def _scaled(self, term: Term, scalings: Sequence[list[Elementwise]], widths: Sequence[int]) -> Any:
        """A row whose parts, of these widths, are scaled each by its own steps."""
        while operators := [steps[0].operator for steps in scalings if steps]:
            self._require_room(np.broadcast_to(_number(1), sum(widths)))
            row = []
            for steps, width in zip(scalings, widths, strict=True):
                own = steps.pop(0).value if steps and steps[0].operator == operators[0] else _number(NEUTRAL[operators[0]])
                row.append(np.broadcast_to(own, width))
            term = self(operators[0], term, np.concatenate(row))
        return term

    def _require_no_mean(self, root: Term) -> None:
        if any(term.operator == "ReduceMean" for term in _inside(root, root.leaf)):
            raise NetworkError("takes some values of what a mean over a row is part of")

    def _replaced(self, root: Term, old: Term, new: Any, row: Callable[[str, Array], Array] | None = None) -> Any:
        """The same term of another value in place of `old`. row: given an operator and its constant of (width,), another."""
        replaced: dict[Term, Any] = {old: new}
        for term in _inside(root, old):
            operands = [
                replaced[each] if isinstance(each, Term) else row(term.operator, each) if row and each.ndim else each
                for each in term.operands
            ]
            changed = any(a is not b for a, b in zip(operands, term.operands, strict=True))
            replaced[term] = self(term.operator, *operands, numbers=term.numbers) if changed else term
        return replaced[root]


def _inside(root: Term, end: Term) -> list[Term]:
    """The terms that `root` is made of, in order, without `end` and what comes before it."""
    waiting, inside = [root], {root}
    while waiting:
        new = [term for term in waiting.pop().terms if term not in inside and term is not end]
        inside.update(new)
        waiting += new
    return sorted(inside - {end}, key=lambda term: term.place)


def spelled(terms: Terms, operator: str, attributes: Mapping[str, Any], operands: Sequence[Any]) -> Any:
    """An ONNX operator as the terms that it is made of.

    operands: terms and constants. attributes: of the types that the operator declares. Raises NetworkError like `Terms`.
    """
    if operator in OPERATORS:
        numbers = tuple(_finite(name, attributes, default) for name, default in ATTRIBUTES.get(operator, {}).items())
        if operator in ("Max", "Min"):
            return reduce(lambda a, b: terms(operator, a, b), operands)
        return terms(operator, *operands, numbers=numbers)
    return SPELLED[operator](terms, attributes, *operands)


def _silu(t: Terms, x: Any, factor: float) -> Any:
    return t("Mul", x, t("Sigmoid", x if factor == 1 else t("Mul", x, _number(factor))))


def _gelu(t: Terms, attributes: Mapping[str, Any], x: Any) -> Any:
    approximate = attributes.get("approximate", b"none")
    if approximate == b"none":
        bell = t("Erf", t("Div", x, _number(math.sqrt(2))))
    elif approximate == b"tanh":
        cubic = t("Add", x, t("Mul", t("Mul", t("Mul", x, x), x), _number(0.044715)))
        bell = t("Tanh", t("Mul", cubic, _number(math.sqrt(2 / math.pi))))
    else:
        raise NetworkError(f"approximate is {approximate!r}; expected none or tanh")
    return t("Mul", t("Mul", x, t("Add", bell, _number(1))), _number(0.5))


def _celu(t: Terms, attributes: Mapping[str, Any], x: Any) -> Any:
    alpha = _number(_finite("alpha", attributes, 1.0))
    return t("Mul", t("Elu", t("Div", x, alpha), numbers=(1.0,)), alpha)


def _thresholded(t: Terms, attributes: Mapping[str, Any], x: Any) -> Any:
    return t("Mul", x, t.above(x, _number(_finite("alpha", attributes, 1.0))))


def _shrink(t: Terms, attributes: Mapping[str, Any], x: Any) -> Any:
    bias, bound = _number(_finite("bias", attributes, 0.0)), _number(_finite("lambd", attributes, 0.5))
    low, high = t.above(t("Neg", x), bound), t.above(x, bound)
    return t("Add", t("Mul", low, t("Add", x, bias)), t("Mul", high, t("Sub", x, bias)))


SPELLED: Mapping[str, Callable[..., Any]] = {
    "Sum": lambda t, attributes, *each: reduce(lambda a, b: t("Add", a, b), each),
    "Mean": lambda t, attributes, *each: t("Div", reduce(lambda a, b: t("Add", a, b), each), _number(len(each))),
    "Reciprocal": lambda t, attributes, x: t("Div", _number(1), x),
    "Sign": lambda t, attributes, x: t("Sub", t.above(x, _number(0)), t.above(_number(0), x)),
    "Softsign": lambda t, attributes, x: t("Div", x, t("Add", t("Abs", x), _number(1))),
    "HardSwish": lambda t, attributes, x: t("Mul", x, t("HardSigmoid", x, numbers=(1 / 6, 0.5))),
    "Mish": lambda t, attributes, x: t("Mul", x, t("Tanh", t("Softplus", x))),
    "Swish": lambda t, attributes, x: _silu(t, x, _finite("alpha", attributes, 1.0)),
    "com.microsoft.QuickGelu": lambda t, attributes, x: _silu(t, x, _finite("alpha", attributes, 1.702)),
    "Celu": _celu,
    "Gelu": _gelu,
    "com.microsoft.Gelu": lambda t, attributes, x: _gelu(t, {}, x),
    "com.microsoft.BiasGelu": lambda t, attributes, x, bias: _gelu(t, {}, t("Add", x, bias)),
    "com.microsoft.FastGelu": lambda t, attributes, x, *bias: _gelu(
        t, {"approximate": b"tanh"}, t("Add", x, *bias) if bias else x
    ),
    "ThresholdedRelu": _thresholded,
    "Shrink": _shrink,
    "Greater": lambda t, attributes, a, b: t.above(a, b),
    "Less": lambda t, attributes, a, b: t.above(b, a),
    "GreaterOrEqual": lambda t, attributes, a, b: t.negated(t.above(b, a)),
    "LessOrEqual": lambda t, attributes, a, b: t.negated(t.above(a, b)),
    "Equal": lambda t, attributes, a, b: t.equal(a, b),
    "IsNaN": lambda t, attributes, x: np.array(False) if isinstance(x, Term) else np.isnan(x),
    "Not": lambda t, attributes, a: t.negated(a),
    "And": lambda t, attributes, a, b: t.where(a, b, _as_condition(a, False)),
    "Or": lambda t, attributes, a, b: t.where(a, _as_condition(a, True), b),
    "Where": lambda t, attributes, condition, a, b: t.where(condition, a, b),
}
"""Operators by what they are made of."""
CONDITIONS = {"Greater", "Less", "GreaterOrEqual", "LessOrEqual", "Equal", "IsNaN", "Not", "And", "Or"}
"""The operators whose results are true or false."""


def _as_condition(like: Any, value: bool) -> Array:
    return _number(value) if isinstance(like, Term) else np.array(value)


def _number(value: float) -> Float32:
    return np.asarray(value, dtype=np.float32)


def _is_zero(value: Any) -> bool:
    return not isinstance(value, Term) and not value.any()


def _finite(name: str, attributes: Mapping[str, Any], default: float) -> float:
    value = float(attributes.get(name, default))
    if not math.isfinite(value):
        raise NetworkError(f"{name} is {value}")
    return value


def steps_of(root: Term, width: int) -> list[Step]:
    """The steps that compute a term of rows of so many values, in order."""
    steps: list[Step] = []  # from the last to the first
    while root.operator:
        root = _add_part(steps, root, width)
    return steps[::-1]


def _add_part(steps: list[Step], root: Term, width: int) -> Term:
    """Append the steps from the next place where all paths meet to `root`, last first. Returns the term at that place."""
    has_mean = False
    for tried, (inside, start) in enumerate(_parts(root)):
        has_mean = has_mean or any(term.operator == "ReduceMean" for term in inside)
        if root.operator == "Log" and start.operator == "Sigmoid":  # which as an activation is not exact where it is small
            inside, start = [root, start], start.terms[0]
        if not has_mean:
            steps += _single(inside[0]) if len(inside) == 1 and len(root.terms) == 1 else _several(steps, inside, start)
            return start
        normalization = _layer_normalization(inside, start, width)
        if normalization:
            steps.append(_with_scale(steps, normalization))
            return start
        if tried > 20:
            break
    raise NetworkError("a mean or a sum over a row is supported only as part of a layer normalisation")


def _parts(root: Term) -> Iterator[tuple[list[Term], Term]]:
    """The terms that all paths from `root` to its leaf go through, nearest first, each with the terms up to there."""
    inside: list[Term] = []
    heap, seen = [(-root.place, root)], {root.place}
    while heap:
        _, term = heapq.heappop(heap)
        if inside and not heap:
            yield list(inside), term
        inside.append(term)
        for operand in term.terms:
            if operand.place not in seen:
                seen.add(operand.place)
                heapq.heappush(heap, (-operand.place, operand))


def _single(term: Term) -> list[Step]:
    """A node with one operand that is not constant, last step first."""
    place = next(place for place, operand in enumerate(term.operands) if isinstance(operand, Term))
    constant = term.operands[1 - place] if len(term.operands) == 2 else _number(0)
    match term.operator:
        case "Clip":
            return [Clip(*term.numbers)]
        case "Neg":
            return [Elementwise("Mul", _number(-1))]
        case "Sub" if place == 1:
            return [Elementwise("Add", constant), Elementwise("Mul", _number(-1))]
        case "Add" | "Sub" | "Mul" | "Div" if place == 0 or term.operator in ("Add", "Mul"):
            return [Elementwise(term.operator, constant)]
        case "LeakyRelu":
            return [Activation("leaky_relu", *term.numbers)]
        case operator if operator in _ACTIVATIONS:
            return [Activation(_ACTIVATIONS[operator])]  # type: ignore[arg-type]
    return [_function([term], term.terms[0])]


def _several(steps: list[Step], inside: list[Term], start: Term) -> list[Step]:
    factor = _gelu_factor(inside[0], start)
    if factor is None:
        return [_function(inside, start)]
    following = steps[-1] if steps else None
    if isinstance(following, Elementwise) and following.operator == "Mul" and following.value.size == 1 and not _is_one(factor):
        last = float(following.value.reshape(()))
        if _is_one(factor * last):
            steps.pop()
            factor = 1.0
    return [*([] if _is_one(factor) else [Elementwise("Mul", _number(factor))]), Activation("gelu")]


def _is_one(factor: float) -> bool:
    return math.isclose(factor, 1, rel_tol=1e-6)


def _function(inside: Sequence[Term], start: Term) -> Function:
    """The terms after `start`, the last first, as a function of it: in the order in which they are read from a file again."""
    ordered: list[Term] = []
    waiting, begun = [(inside[0], False)], {start}
    while waiting:
        term, done = waiting.pop()
        if done:
            ordered.append(term)
        elif term not in begun:
            begun.add(term)
            waiting += [(term, True), *((each, False) for each in reversed(term.terms))]
    constants = [operand for term in ordered for operand in term.operands if not isinstance(operand, Term)]
    places = {start.place: 0} | {term.place: 1 + len(constants) + place for place, term in enumerate(ordered)}
    unused = iter(range(1, 1 + len(constants)))
    nodes = (
        Node(
            term.operator,
            tuple(places[operand.place] if isinstance(operand, Term) else next(unused) for operand in term.operands),
            term.numbers,
        )
        for term in ordered
    )
    return Function(tuple(constants), tuple(nodes))


def _gelu_factor(root: Term, x: Term) -> float | None:
    """What a GELU of x is multiplied by in `root`; None if that is anything else than `x · (1 + erf(x / √2))` and numbers."""
    factor, bells, waiting, xs = 2.0, [], [root], 0
    while waiting:
        operand = waiting.pop()
        if operand is x:
            xs += 1
        elif not isinstance(operand, Term):
            factor *= float(operand.reshape(())) if operand.size == 1 else math.nan
        elif operand.operator == "Mul":
            waiting += operand.operands
        else:
            bells.append(operand)
        if xs > 1 or len(bells) > 1:
            return None
    erf = _operand(bells[0], "Add", 1, tolerance=0) if xs == 1 and bells and math.isfinite(factor) else None
    scaled = erf.operands[0] if erf is not None and erf.operator == "Erf" else None
    if scaled is None:
        return None
    return factor if x in (_operand(scaled, "Div", math.sqrt(2)), _operand(scaled, "Mul", math.sqrt(0.5))) else None


def _operand(term: Term, operator: str, constant: float, tolerance: float = _GELU_TOLERANCE) -> Term | None:
    """The term that `term` is this operator of, with about this constant."""
    if term.operator != operator or len(term.terms) != 1 or (operator == "Div" and term.operands[0] is not term.terms[0]):
        return None
    other = next(operand for operand in term.operands if not isinstance(operand, Term))
    fits = other.size == 1 and math.isclose(float(other.reshape(())), constant, rel_tol=tolerance)
    return term.terms[0] if fits else None


def _layer_normalization(inside: list[Term], start: Term, width: int) -> LayerNormalization | None:
    """The layer normalisation that the terms after `start` compute, however it is spelled: found by what they make of a few
    rows, and then compared on others."""
    if width < 2 or inside[0].per_row or width * len(inside) > _MOST_COMPARED:
        return None
    function = _function(inside, start)
    rows = np.random.default_rng(0).normal(size=(8, width))
    rows -= rows.mean(axis=1, keepdims=True)
    rows /= rows.std(axis=1, keepdims=True)
    with np.errstate(all="ignore"):
        bias, large, small = evaluate(function, rows[:3] * np.array([[0], [1e6], [1e-4]]))
        scale = (large - bias) / rows[1]
        epsilon = 1e-8 * float(np.median((scale * rows[2] / (small - bias)) ** 2) - 1)
        others = rows[3:] * np.array([[1e-3], [0.1], [1], [10], [100]]) + np.array([[0], [1], [-2], [3], [-50]])
        expected = others - others.mean(axis=1, keepdims=True)
        expected = expected / np.sqrt((expected**2).mean(axis=1, keepdims=True) + epsilon) * scale + bias
        differs = np.abs(evaluate(function, others) - expected).max() / np.abs(expected).max()
    if not (differs < 1e-6 and 0 < epsilon < 1):
        return None
    return LayerNormalization(scale.astype(np.float32), bias.astype(np.float32), float(np.float32(epsilon)))


def _with_scale(steps: list[Step], normalization: LayerNormalization) -> LayerNormalization:
    """A layer normalisation with the constants that follow it, which are taken from `steps`, as its scale and bias."""
    scale, bias = normalization.scale, normalization.bias
    for operator in ("Mul", "Add"):
        following = steps[-1] if steps else None
        if isinstance(following, Elementwise) and following.operator == operator:
            steps.pop()
            scale, bias = (
                (scale * following.value, bias * following.value) if operator == "Mul" else (scale, bias + following.value)
            )
    return LayerNormalization(scale, bias, normalization.epsilon)
