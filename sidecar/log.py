"""The log on stderr: a line an event, as text or as JSON."""

from __future__ import annotations

import atexit
import contextlib
import json
import logging
import math
import os
import queue
import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any, Literal

_MOST_LINES = 2000
DRAIN_S = 1.0
REPEATED_S = 60.0
"""What is said again and again is logged once in so long."""


class _JsonFormatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        line = {"time": _time(record), "level": record.levelname.lower(), "message": record.getMessage(), **_fields(record)}
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line, ensure_ascii=False, default=str)


class _TextFormatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        fields = "".join(f" {name}={_in_words(value)}" for name, value in _fields(record).items())
        message, newline, exception = super().format(record).partition("\n")
        return f"{_time(record)} {message}{fields}{newline}{exception}"


def configure(log_format: Literal["text", "json"] = "text", level: str = "info") -> None:
    """Log to standard error from now on; level: debug, info, warning or error.

    Nobody waits for standard error: lines go through a bounded queue, and those for which there is no room are counted.
    """
    global _writer
    _writer = _Writer(2)
    handler = _writer.handler()
    handler.setFormatter(_JsonFormatter() if log_format == "json" else _TextFormatter("%(levelname)s %(message)s"))
    logging.basicConfig(handlers=[handler], level=level.upper(), force=True)
    atexit.register(drain)


def dropped() -> int:
    """Log lines of this process that were dropped because nobody reads standard error."""
    return _writer.dropped if _writer is not None else 0


def drain() -> None:
    """Give what is to be logged a second to be written. Called at the end of the process, if that comes as usual."""
    if _writer is not None:
        _writer.drain()


class _Writer:
    """Writes lines to a descriptor from a thread of its own, which may have to wait for whoever reads there."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._lines: queue.Queue[bytes] = queue.Queue(_MOST_LINES)
        self.dropped = self._told = 0
        threading.Thread(target=self._run, name="log", daemon=True).start()

    def put(self, line: str) -> None:
        try:
            self._lines.put_nowait(line.encode(errors="backslashreplace") + b"\n")
        except queue.Full:
            self.dropped += 1

    def handler(self) -> logging.Handler:
        """What gives it the lines of a log."""
        put = self.put

        class Handler(logging.Handler):
            def emit(self, record: logging.LogRecord) -> None:
                try:
                    put(self.format(record))
                except Exception:
                    self.handleError(record)

        return Handler()

    def drain(self) -> None:
        until = time.monotonic() + DRAIN_S
        while self._lines.unfinished_tasks and time.monotonic() < until:
            time.sleep(0.005)

    def _run(self) -> None:
        while True:
            line = self._lines.get()
            if self.dropped > self._told:
                line += f"{self.dropped - self._told} log lines were dropped: nobody read standard error\n".encode()
                self._told = self.dropped
            with contextlib.suppress(OSError):
                while line:
                    line = line[os.write(self._descriptor, line) :]
            self._lines.task_done()


_writer: _Writer | None = None


def event(logger: logging.Logger, message: str, /, level: int = logging.INFO, **fields: Any) -> None:
    """Log what happened with its figures: fields of the line in JSON, name=value behind the message in text."""
    logger.log(level, message, extra={"fields": fields})


class Complaints:
    """Warnings, each kind the first time and then at most once a minute, with how many were kept back."""

    def __init__(self, logger: logging.Logger, clock: Callable[[], float] = time.monotonic) -> None:
        self._logger, self._clock = logger, clock
        self._lock = threading.Lock()
        self._last: dict[str, tuple[float, int]] = {}

    def warn(self, kind: str, text: str, *arguments: object, count: int = 1) -> None:
        """count: how many times it happened."""
        now = self._clock()
        with self._lock:
            said_at, kept_back = self._last.get(kind, (-math.inf, 0))
            if now - said_at < REPEATED_S:
                self._last[kind] = said_at, kept_back + count
                return
            self._last[kind] = now, count - 1
        more = f" (and {kept_back} more like this since the last such line)" if kept_back else ""
        self._logger.warning(text + "%s", *arguments, more)


def _fields(record: logging.LogRecord) -> dict[str, Any]:
    fields: dict[str, Any] = getattr(record, "fields", {})
    return fields


def _in_words(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.6g}"
    text = str(value)
    return text if text and not any(each.isspace() or each in '"=' for each in text) else json.dumps(text, ensure_ascii=False)


def _time(record: logging.LogRecord) -> str:
    return datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
