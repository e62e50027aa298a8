"""Progress bars, which are shown only on a terminal, and output that is redrawn in place."""

from __future__ import annotations

import contextlib
import shutil
import sys
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import click

from sidecar.fleet.reading import Done
from sidecar.learning.recipe import Progress, no_progress

_HOME, _TO_THE_END_OF_THE_LINE, _TO_THE_END = "\x1b[H", "\x1b[K", "\x1b[J"


@contextlib.contextmanager
def replay_bar(count: Callable[[], int] | None) -> Iterator[Callable[[int], None]]:
    """A bar of answered pairs on stderr, if that is a terminal. count: returns how many there are; None if it is unknown."""
    if not sys.stderr.isatty():
        yield lambda answered: None
        return
    total = count() if count else None
    bar: Any = click.progressbar(
        length=total, label="answered", file=sys.stderr, show_pos=True, update_min_steps=max(1, (total or 100_000) // 500)
    )
    with bar:
        done = 0

        def show(answered: int) -> None:
            nonlocal done
            bar.update(answered - done)
            done = answered

        yield show


@contextlib.contextmanager
def reading_bar() -> Iterator[Callable[[Done], None]]:
    """A bar of what workers have read on stderr, if that is a terminal."""
    with contextlib.ExitStack() as stack:
        bar: Any = None

        def show(done: Done) -> None:
            nonlocal bar
            if bar is None and sys.stderr.isatty():
                words = "{0.pairs:,} pairs, {0.pairs_per_second:,.0f} per second, workers: {0.workers}".format
                bar = click.progressbar(
                    length=done.of_parts,
                    label="reading",
                    file=sys.stderr,
                    show_pos=True,
                    item_show_func=lambda done: "" if done is None else words(done),
                )
                stack.enter_context(bar)
            if bar is not None:
                bar.update(1, done)

        yield show


@contextlib.contextmanager
def training_bar() -> Iterator[Callable[[int], Progress]]:
    """A bar on stderr with the current loss, if that is a terminal."""
    with contextlib.ExitStack() as stack:

        def start(total: int) -> Progress:
            if not sys.stderr.isatty():
                return no_progress
            bar: Any = stack.enter_context(
                click.progressbar(
                    length=total,
                    label="training",
                    file=sys.stderr,
                    item_show_func=lambda loss: "" if loss is None else f"loss {loss:.3f}",
                    update_min_steps=max(1, total // 500),
                )
            )
            return lambda pairs, loss: bar.update(pairs, loss)

        yield start


def draw_again(pictures: Iterable[str]) -> None:
    """Draw each picture over the one before, cut to the height of the terminal; without a terminal, one after the other."""
    for picture in pictures:
        if sys.stdout.isatty():
            lines = picture.splitlines()[: shutil.get_terminal_size().lines - 1]
            click.echo(_HOME + "".join(f"{line}{_TO_THE_END_OF_THE_LINE}\n" for line in lines) + _TO_THE_END, nl=False)
        else:
            click.echo(picture + "\n")
