"""The features of a request line by name: an array in a known order, or an object, put in the order that the model takes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from operator import itemgetter

from msgspec import UNSET

from sidecar.features.encoder_block import EncoderBlock, EncoderBlockError
from sidecar.features.names import NamesError, canonical, in_order
from sidecar.pairs.errors import PairError
from sidecar.pairs.request import Request

Values = Sequence[float]


class NamedFeatures:
    """Puts the features of a pair in a model's order.

    arrays: the names of the numbers of an array, in order. order: the same names in the model's order, by default in the
    arrays'. block: what makes some of these numbers from `encoder`, `preset` and `crf` of a pair that gives those instead.

    Raises NamesError if `order` has other names than `arrays`.
    """

    def __init__(self, arrays: Sequence[str], order: Sequence[str] = (), block: EncoderBlock | None = None) -> None:
        self.names = tuple(order or arrays)
        places = in_order(arrays, self.names)
        self._ordered = None if places == list(range(len(places))) else _getter(places)
        self._block = block
        self._measured = [name for name in arrays if block is None or name not in block.names]

    def values(self, request: Request) -> Values:
        """The numbers in the model's order; an array of another length is given back as it is.

        Raises PairError, which says what is missing or too much.
        """
        features = request.features
        if not isinstance(features, dict):
            if self._block is None or len(features) != len(self._measured) or len(features) == len(self.names):
                return self._ordered(features) if self._ordered and len(features) == len(self.names) else features
            features = dict(zip(self._measured, features, strict=True))
        found = {canonical(name): value for name, value in features.items()}
        if len(found) != len(features):
            raise PairError("features: a feature is named twice, in two spellings")
        if self._block and len(found) < len(self.names):
            found = _numbers(self._block, request) | found
        try:
            places = in_order([*found], self.names)
        except NamesError as error:
            raise PairError(f"features: {error}") from None
        values = [*found.values()]
        return [values[place] for place in places]


def _numbers(block: EncoderBlock, request: Request) -> dict[str, float]:
    given = (None if each is UNSET else each for each in (request.encoder, request.preset, request.crf))
    try:
        return block.numbers(*given)
    except EncoderBlockError as error:
        raise PairError(str(error)) from None


def _getter(places: Sequence[int]) -> Callable[[Values], Values]:
    get = itemgetter(*places)  # at least two, or they would be in order
    return lambda values: get(values)
