"""What the devices have in common: calls run at once, or are recorded."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from sidecar.learning.device.stacked import Call, Stacked


class Recorder:
    """The calls between `begin` and `end`, in their order."""

    def __init__(self) -> None:
        self._calls: list[Call] | None = None
        self._condition: Stacked | None = None
        self._guarded: list[Any] = []

    def record(self, operations: Sequence[Callable[[], Any]]) -> list[Call]:
        """The calls that operations make; they are not run."""
        self._calls = []
        try:
            for operation in operations:
                operation()
            return self._calls
        finally:
            self._calls, self._condition = None, None

    def takes(self, call: Call) -> bool:
        """Add a call, if calls are being recorded now."""
        if self._calls is None:
            return False
        if self._condition is not None and any(call.out.data is each for each in self._guarded):
            assert call.where is None
            call = replace(call, where=self._condition)
        self._calls.append(call)
        return True

    def only_where(self, condition: Stacked | None, arrays: Sequence[Stacked]) -> None:
        self._condition, self._guarded = condition, [each.data for each in arrays]
