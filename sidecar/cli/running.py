"""Commands that talk to a running sidecar: `replay`, `status`, `probe`."""

from __future__ import annotations

from pathlib import Path

import click

from sidecar.cli import exit_codes
from sidecar.cli.options import PATH, POSITIVE, columns_options, http_option, json_option, pairs_argument
from sidecar.cli.output import print_json
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
    from sidecar.monitoring.terminal import format_status

    if watch and as_json:
        raise click.UsageError("--watch cannot be used with --json; scripts can read /api/history and /api/checkpoints")
    try:
        if watch:
            from sidecar.monitoring.terminal import watch as looks

            draw_again(looks(http))
        document = fetch_status(http)
    except ValueError as error:
        raise click.BadParameter(str(error), param_hint="--http") from error
    except HttpError as error:
        click.echo(f"Error: {error}", err=True)
        return exit_codes.CHECK_SAYS_NO
    if as_json:
        print_json(document)
    else:
        click.echo(format_status(document))
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
