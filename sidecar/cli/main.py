"""The `vmafx-sidecar` command and its exit codes."""

from __future__ import annotations

import errno
import logging
import sys
from typing import NoReturn

import click

from onnx_builder.network import NetworkError
from sidecar import __version__
from sidecar.checkpoints.directory import CheckpointError
from sidecar.cli import exit_codes
from sidecar.cli.models import evaluate_command, inspect_command, promote_command, verify_command
from sidecar.cli.running import probe_command, replay_command, status_command, watch_command
from sidecar.cli.serve import serve_command
from sidecar.cli.state import forget_command
from sidecar.cli.train import train_offline_command
from sidecar.evaluation.report import ReportError
from sidecar.fleet.workers import LostError, SchedulerError
from sidecar.journal.segments import JournalError
from sidecar.learning.device import DeviceError
from sidecar.learning.recipe import TrainingError
from sidecar.models.description import DescriptionError
from sidecar.pairs.errors import RecordedPairsError
from sidecar.settings import SettingsError

_BAD_INPUT = (
    RecordedPairsError,
    TrainingError,
    NetworkError,
    CheckpointError,
    DescriptionError,
    JournalError,
    SettingsError,
    DeviceError,
    ReportError,
    SchedulerError,
)


def main() -> NoReturn:
    """Run the command line and exit with one of the `exit_codes`."""
    logging.basicConfig(format="%(levelname)s: %(message)s", level=logging.INFO, stream=sys.stderr)
    try:
        sys.exit(cli.main(standalone_mode=False) or 0)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except (click.Abort, KeyboardInterrupt):
        click.echo("interrupted", err=True)
        sys.exit(exit_codes.INTERRUPTED)
    except _BAD_INPUT as error:
        click.echo(f"Error: {error}", err=True)
        sys.exit(exit_codes.BAD_INPUT)
    except LostError as error:
        click.echo(f"Error: {error}; nothing was published", err=True)
        sys.exit(exit_codes.CHECK_SAYS_NO)
    except MemoryError:
        click.echo("Error: out of memory: use fewer pairs or a smaller --hidden", err=True)
        sys.exit(exit_codes.BAD_INPUT)
    except OSError as error:
        if error.filename is None and error.errno != errno.ENOSPC:
            raise
        click.echo(f"Error: {error.filename or 'standard output'}: {error.strerror}", err=True)
        sys.exit(exit_codes.BAD_INPUT)


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(__version__, prog_name="vmafx-sidecar")
def cli() -> None:
    """Train small regression models that predict VMAF scores from features."""


for _command in (
    train_offline_command,
    serve_command,
    replay_command,
    status_command,
    probe_command,
    watch_command,
    promote_command,
    forget_command,
    evaluate_command,
    inspect_command,
    verify_command,
):
    cli.add_command(_command)
