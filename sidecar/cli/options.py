"""Options and arguments that several commands share."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

from sidecar.settings import Settings

Command = TypeVar("Command", bound=Callable[..., Any])

PATH = click.Path(path_type=Path)
POSITIVE = click.FloatRange(min=0, min_open=True)
NOT_NEGATIVE = click.FloatRange(min=0)
SHARE = click.FloatRange(min=0, max=1, max_open=True)

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
    help="Address of the sidecar's HTTP server.",
)
_skip_bad = click.option("--skip-bad", is_flag=True, help="Count bad rows and skip them, instead of stopping at the first.")
_score_min = click.option("--score-min", type=float, default=0.0, show_default=True, help="Lowest true_score that is accepted.")
_score_max = click.option(
    "--score-max", type=float, default=100.0, show_default=True, help="Highest true_score that is accepted."
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


def pairs_options(command: Command) -> Command:
    """The options that decide which rows of recorded pairs are accepted."""
    return _score_min(_score_max(_skip_bad(command)))


def directory_options(command: Command) -> Command:
    """The options for a sidecar's directories; they also read its environment variables."""
    return _checkpoint_dir(_state_dir(command))


def base_scaler_option(help_text: str) -> Callable[[Command], Command]:
    """The option `--base-scaler` with this help text."""
    return click.option("--base-scaler", type=click.Choice(["none", "json"]), default="none", show_default=True, help=help_text)
