"""Commands beside a running sidecar: `replay`, `status`, `probe`, and `watch`, which follows its models."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import click

from sidecar.cli import exit_codes
from sidecar.cli.options import PATH, POSITIVE, columns_options, duration_option, http_option, json_option, pairs_argument
from sidecar.cli.output import print_json, print_json_line
from sidecar.cli.progress import draw_again, replay_bar
from sidecar.pairs.lines import STDIN
from sidecar.pairs.tables.choice import Columns
from sidecar.settings import Settings


@click.command("replay")
@pairs_argument
@click.option(
    "--socket",
    type=PATH,
    envvar="VMAFX_SIDECAR_SOCKET",
    default=Settings.socket,
    show_default=True,
    help="The sidecar's Unix socket.",
)
@click.option("--rate", type=POSITIVE, help="Pairs per second.  [default: as fast as the answers arrive]")
@columns_options
@json_option
def replay_command(pairs: tuple[str, ...], socket: Path, rate: float | None, columns: Columns, as_json: bool) -> int:
    """Send recorded PAIRS to a running sidecar, as a node would, and measure its answers.

    The exit code is 1 if any pair was refused.

    \b
    Example:
      vmafx-sidecar replay examples/recorded-80.jsonl.gz --socket /tmp/s.sock
    """
    from sidecar.client.replay import ReplayError, read_requests, replay

    try:
        known = None if STDIN in pairs else lambda: sum(1 for _ in read_requests(pairs, columns))
        with replay_bar(known) as progress:
            summary = replay(pairs, socket, rate=rate, progress=progress, columns=columns)
    except ReplayError as error:
        click.echo(f"Error: {error}", err=True)
        return exit_codes.BAD_INPUT
    if as_json:
        print_json(summary.as_json())
    else:
        click.echo(
            f"{summary.accepted} accepted, {summary.duplicate} duplicates, {summary.refused + summary.retryable} refused"
        )
        if summary.first_refusal:
            click.echo(f"first refusal: {summary.first_refusal}")
        for line in summary.skips[:100]:
            click.echo(line)
        for checkpoint in summary.checkpoints:
            click.echo(f"checkpoint: {checkpoint}")
        latencies = (summary.latency_ms(share) for share in (0.5, 0.99, 1.0))
        p50, p99, most = (f"{value:.3g}" for value in latencies if value is not None)
        click.echo(
            f"{summary.pairs_per_second:,.0f} pairs per second; time to answer: median {p50} ms, 99 % within {p99} ms, "
            f"longest {most} ms"
        )
    return exit_codes.CHECK_SAYS_NO if summary.refused or summary.retryable else 0


_COLOURS: dict[str, dict[str, Any]] = {"good": {"fg": "green"}, "bad": {"fg": "red", "bold": True}, "quiet": {"dim": True}}


def paint(text: str, how: str) -> str:
    """Colours for a terminal, unless NO_COLOR is set."""
    return text if os.environ.get("NO_COLOR") else click.style(text, **_COLOURS[how])


@click.command("status")
@http_option
@click.option("--watch", is_flag=True, help="Refresh every two seconds until Ctrl-C.")
@json_option
def status_command(http: str, watch: bool, as_json: bool) -> int:
    """Show the state of a running sidecar.

    \b
    Example:
      vmafx-sidecar status --watch
    """
    from sidecar.monitoring.fetch import HttpError, fetch_status
    from sidecar.monitoring.terminal import status_for_people

    if watch and as_json:
        raise click.UsageError("--watch cannot be used with --json; scripts can read /api/history and /api/checkpoints")
    try:
        if watch:
            from sidecar.monitoring.terminal import watch as looks

            draw_again(looks(http, paint))
        document = fetch_status(http)
    except ValueError as error:
        raise click.BadParameter(str(error), param_hint="--http") from error
    except HttpError as error:
        click.echo(f"Error: {error}", err=True)
        return exit_codes.CHECK_SAYS_NO
    if as_json:
        print_json(document)
    else:
        click.echo(status_for_people(document, paint=paint))
    return 0


@click.command("probe")
@http_option
@json_option
def probe_command(http: str, as_json: bool) -> int:
    """Check whether a sidecar accepts pairs: exit code 0 if it does, 1 if not.

    \b
    Example:
      vmafx-sidecar probe --http 127.0.0.1:9091
    """
    from sidecar.monitoring.fetch import probe

    try:
        ready, line = probe(http)
    except ValueError as error:
        raise click.BadParameter(str(error), param_hint="--http") from error
    if as_json:
        print_json({"ready": ready, "message": line})
    else:
        click.echo(line)
    return 0 if ready else exit_codes.CHECK_SAYS_NO


class _WithProgram(click.Command):
    """Everything after `--exec` is the program and its arguments, as in `find` and `fd`."""

    def parse_args(self, context: click.Context, args: list[str]) -> list[str]:
        if "--exec" in args:
            place = args.index("--exec")
            args = [*args[:place], *(f"--exec={each}" for each in args[place + 1 :])]
        return super().parse_args(context, args)


@click.command("watch", cls=_WithProgram)
@click.argument("source", metavar="DIR|URL")
@click.option(
    "--policy",
    type=click.Choice(["latest-stable", "latest", "pinned"]),
    default="latest-stable",
    show_default=True,
    help="Which model is followed; pinned: the one of --version.",
)
@click.option("--version", type=click.IntRange(min=1), help="The version that is meant, with --policy pinned.")
@click.option(
    "--tenant", metavar="NAME", help="The tenant whose model is followed; if it has none of its own, that is the shared one."
)
@duration_option("--interval", "0.5s", "Time between two looks.")
@duration_option("--timeout", "60s", "How long the program may run.")
@click.option(
    "--exec",
    "command",
    multiple=True,
    required=True,
    type=click.UNPROCESSED,
    metavar="PROGRAM [ARGUMENT]...",
    help="The program and all its arguments; nothing of this command comes after it.",
)
@click.option("--json", "as_json", is_flag=True, help="Print a JSON object, on a line, for each run and each refused model.")
def watch_command(
    source: str,
    policy: str,
    version: int | None,
    tenant: str | None,
    interval: float,
    timeout: float,
    command: tuple[str, ...],
    as_json: bool,
) -> None:
    """Run a program for each new stable model, until Ctrl-C.

    The models are those of a checkpoint directory, or of a sidecar that gives them out (--http-models 1), at http://HOST:PORT.
    Each is verified, as by `verify`, and copied to a directory of its own; `{}` in an argument stands for the path of the copy,
    which is the last argument where no `{}` stands. The copy is removed when the program has ended. If the program fails, or
    takes longer than --timeout, it is run again, after 1 to 60 seconds, until it succeeds or there is a newer model.

    \b
    Example:
      vmafx-sidecar watch /mnt/vmafx-models/online --exec /usr/local/bin/reload-node
    """
    from sidecar.consumer.follower import Follower
    from sidecar.consumer.verified import VerifiedModel
    from sidecar.watch.interrupts import Interrupts
    from sidecar.watch.program import run_program
    from sidecar.watch.runs import runs

    if shutil.which(command[0]) is None:
        raise click.BadParameter(f"{command[0]}: there is no such program", param_hint="--exec")
    try:
        follower = Follower(source, policy, version, tenant=tenant)
    except ValueError as error:
        raise click.UsageError(str(error)) from error
    stdout = 2 if as_json else None
    with Interrupts().handled() as interrupts:

        def news() -> VerifiedModel | None:
            with interrupts.waiting():
                return follower.news()

        def run(model: VerifiedModel) -> str:
            return run_program(model, command, timeout, stdout=stdout, sleep=interrupts.sleep)

        for event in runs(news, run, interval, interrupts.sleep):
            with interrupts.waiting():  # whoever reads this may not
                if as_json:
                    print_json_line(event.as_json())
                else:
                    click.echo(str(event))
