"""What is wrong with a pair, or with a file of pairs."""


class PairError(ValueError):
    """A pair that is refused; the message names the field, the value and what is allowed."""


class RecordedPairsError(ValueError):
    """Recorded pairs that cannot be read; the message names the file, the line and the reason."""
