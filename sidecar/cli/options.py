"""Options and arguments that several commands share."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar, cast

import click

from sidecar.pairs.tables.choice import Columns
from sidecar.settings import Settings, duration

Command = TypeVar("Command", bound=Callable[..., Any])


class _Finite(click.FloatRange):
    """A range without infinity, and without NaN, which no comparison keeps out."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        number = float(super().convert(value, param, ctx))
        if not math.isfinite(number):
            self.fail(f"{number} is not a finite number.", param, ctx)
        return number


PATH = click.Path(path_type=Path)
POSITIVE = _Finite(min=0, min_open=True)
NOT_NEGATIVE = _Finite(min=0)
SHARE = _Finite(min=0, max=1, max_open=True)

pairs_argument = click.argument("pairs", nargs=-1, required=True, metavar="PAIRS...")
json_option = click.option("--json", "as_json", is_flag=True, help="Print one JSON object on standard output.")
report_option = click.option(
    "--report", type=PATH, metavar="FILE.html", help="Write a report: one HTML page that needs no network."
)
http_option = click.option(
    "--http",
    envvar="VMAFX_SIDECAR_HTTP",
    default=Settings.http,
    show_default=True,
    help="Address or URL of the sidecar's HTTP server.",
)
_skip_bad = click.option("--skip-bad", is_flag=True, help="Count bad rows and skip them, instead of stopping at the first.")
_score_min = click.option("--score-min", type=float, default=0.0, show_default=True, help="Lowest true_score that is accepted.")
_score_max = click.option(
    "--score-max", type=float, default=100.0, show_default=True, help="Highest true_score that is accepted."
)
_COLUMNS = (
    click.option("--features", metavar="A,B,...", help="The features, by name and in order.  [default: the model's, else all]"),
    click.option("--target", metavar="NAME", help="The column with the score.  [default: true_score, vmaf, vmaf_score]"),
    click.option("--group", metavar="NAME", help="The column that names the clip or the encode.  [default: group, and others]"),
    click.option("--job", metavar="NAME", help="The column that names the pair.  [default: job_id]"),
    click.option(
        "--window",
        type=click.IntRange(min=0),
        metavar="N",
        help="Of logs of libvmaf: take the mean of each N frames; 0: of the whole file.  [default: each frame]",
    ),
    click.option("--any-target", is_flag=True, help="Take scores of different VMAF models together."),
)
_checkpoint_dir = click.option(
    "--checkpoint-dir",
    type=PATH,
    envvar="VMAFX_SIDECAR_CHECKPOINT_DIR",
    default=Settings.checkpoint_dir,
    show_default=True,
    help="The sidecar's checkpoint directory.",
)
_state_dir = click.option(
    "--state-dir",
    type=PATH,
    envvar="VMAFX_SIDECAR_STATE_DIR",
    help="The sidecar's state directory.  [default: state in the checkpoint directory]",
)


def duration_option(name: str, default: str, text: str) -> Callable[[Command], Command]:
    """An option for a time: seconds, or a number with a unit, as in settings."""

    def seconds(context: click.Context, parameter: click.Parameter, value: str) -> float:
        kind = duration("s", over=True)
        try:
            return float(kind.parse(value))
        except ValueError:
            raise click.BadParameter(f"{value!r} is not {kind.allowed}") from None

    return click.option(name, metavar="DURATION", default=default, show_default=True, callback=seconds, help=text)


def pairs_options(command: Command) -> Command:
    """The options that decide which rows of recorded pairs are accepted."""
    return _score_min(_score_max(_skip_bad(command)))


def columns_options(command: Command) -> Command:
    """The options that decide which columns are read as what; the command gets them as `columns`."""

    @functools.wraps(command)
    def with_columns(*args: Any, features: str | None, **rest: Any) -> Any:
        asked = {name: rest.pop(name) for name in ("target", "group", "job", "window", "any_target")}
        names = tuple(name.strip() for name in features.split(",")) if features is not None else ()
        if not all(names) or len({*names}) < len(names):
            raise click.UsageError(f"--features {features}: expected names with commas between them, each once")
        return command(*args, columns=Columns(names, **asked), **rest)

    found: Any = with_columns
    for option in reversed(_COLUMNS):
        found = option(found)
    return cast(Command, found)


def directory_options(command: Command) -> Command:
    """The options for a sidecar's directories; they also read its environment variables."""
    return _checkpoint_dir(_state_dir(command))


def base_scaler_option(help_text: str) -> Callable[[Command], Command]:
    """The option `--base-scaler` with this help text."""
    return click.option("--base-scaler", type=click.Choice(["none", "json"]), default="none", show_default=True, help=help_text)
