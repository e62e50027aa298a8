"""A pair: a feature vector and the true score, checked once when it comes in and passed on as one value."""

from __future__ import annotations

import re
import struct
from collections.abc import Sequence
from typing import NamedTuple

import msgspec
import numpy as np
from msgspec import UNSET, UnsetType

from onnx_builder.network import Float32
from sidecar.pairs.errors import PairError
from sidecar.pairs.holdout import holdout_position
from sidecar.pairs.named_features import NamedFeatures
from sidecar.pairs.request import Request, check_named_once, check_other_fields, decode_request
from sidecar.settings import TENANT_ALLOWED, TENANT_PATTERN


class Pair(msgspec.Struct, frozen=True, gc=False):
    """A checked pair.

    features: float32, native bytes; score: in points; holdout: in [0, 1), held out if it is below the fraction; tenant: empty
    for none.
    """

    features: bytes
    score: float
    holdout: float
    job_id: str | UnsetType = UNSET
    group: str | UnsetType = UNSET
    tenant: str = ""


class PairReader:
    """Makes pairs from request lines.

    n_features: how many features every pair must have; score_min, score_max: the accepted range of `true_score`, in points.
    named: their names and order, None if they have no names. target: what `true_score` is, empty if that does not matter; a
    pair that names another is refused. tenants: whether pairs have tenants; else what they say of one does not matter.
    """

    def __init__(
        self,
        n_features: int,
        score_min: float = 0.0,
        score_max: float = 100.0,
        named: NamedFeatures | None = None,
        target: str = "",
        tenants: bool = False,
    ) -> None:
        self.n_features = n_features
        self.score_min, self.score_max = score_min, score_max
        self._named, self._target, self._tenants = named, target, tenants
        self._pack = struct.Struct(f"={n_features}f").pack

    def read(self, line: bytes) -> Pair:
        """The pair in a request line. Raises PairError, which names the field, the value and what is allowed."""
        request: Request = decode_request(line)
        check_other_fields(line)
        if isinstance(request.features, dict):
            check_named_once(line, request.features)
        return self.check(request)

    def check(self, request: Request) -> Pair:
        """The pair made from decoded fields.

        Raises PairError for features of a wrong number or names, one too large for float32, or a score out of range.
        """
        features, score = self._named.values(request) if self._named else request.features, request.true_score
        if isinstance(features, dict):
            raise PairError("features: expected array, got object; a sidecar takes one if its features have names")
        if self._target and request.target not in (UNSET, self._target):
            raise PairError(f"target: {str(request.target)[:64]!r} is not what is trained on here, {self._target!r}")
        if len(features) != self.n_features:
            raise PairError(f"features: expected {self.n_features} numbers, got {len(features)}")
        check_score(score, self.score_min, self.score_max)
        try:
            packed = self._pack(*features)
        except OverflowError:
            index, value = next((i, v) for i, v in enumerate(features) if not _fits(v))
            raise PairError(f"features[{index}]: {value:g} does not fit float32") from None
        job_id, group = request.job_id, request.group
        tenant = checked_tenant(request.tenant) if self._tenants and request.tenant is not UNSET else ""
        return Pair(packed, score, holdout_position(group, job_id, packed), job_id, group, tenant)


class PairBlock(NamedTuple):
    """Consecutive pairs as arrays: features (n, n_features) and scores (n,) in float32, holdout n numbers in [0, 1).

    tenants: n names, empty for a pair of none; where there are no tenants, nothing.
    """

    features: Float32
    scores: Float32
    holdout: list[float]
    tenants: Sequence[str] = ()

    def part(self, start: int, stop: int) -> PairBlock:
        """The pairs from one place to before another."""
        places = slice(start, stop)
        return PairBlock(self.features[places], self.scores[places], self.holdout[places], self.tenants[places])

    @classmethod
    def of(cls, pairs: Sequence[Pair]) -> PairBlock:
        """The arrays of at least one pair."""
        features = np.frombuffer(b"".join([pair.features for pair in pairs]), np.float32).reshape(len(pairs), -1)
        scores = np.array([pair.score for pair in pairs], dtype=np.float32)
        return cls(features, scores, [pair.holdout for pair in pairs], [pair.tenant for pair in pairs])


def check_score(score: float, low: float, high: float) -> None:
    """Raises PairError for a score that is not a number in [low, high]."""
    if not low <= score <= high:
        raise PairError(f"true_score: {shown(score)} is outside {shown(low)} to {shown(high)}")


def checked_tenant(name: object) -> str:
    """The name of a tenant, which names a directory, too. Raises PairError for one that is not allowed."""
    if not isinstance(name, str) or not re.fullmatch(TENANT_PATTERN, name):
        raise PairError(f"tenant: {str(name)[:64]!r}; expected {TENANT_ALLOWED}")
    return name


def shown(value: float) -> str:
    """A number with all the digits that it needs."""
    return repr(float(value)).removesuffix(".0")


def _fits(value: float) -> bool:
    try:
        struct.pack("=f", value)
    except OverflowError:
        return False
    return True
