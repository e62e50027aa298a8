"""`forget`: the command that changes what a sidecar has recorded."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import click

from sidecar.checkpoints.directory import trained_after
from sidecar.cli.options import directory_options, json_option
from sidecar.cli.output import print_json


@click.command("forget")
@click.argument("groups", nargs=-1, required=True, metavar="GROUP...")
@directory_options
@json_option
def forget_command(groups: tuple[str, ...], checkpoint_dir: Path, state_dir: Path | None, as_json: bool) -> None:
    """Remove every recorded pair of a GROUP for good, while the sidecar is stopped.

    Of pairs without a group, GROUP is the job_id. The next start trains on what is left, as if the pairs had never come.
    Checkpoints that were published before stay as they are: those that learned from the pairs are named.

    \b
    Example:
      vmafx-sidecar forget clip-7-crf-23 --checkpoint-dir checkpoints
    """
    from sidecar.state.forget import forget

    state = state_dir or checkpoint_dir / "state"
    forgotten = forget(groups, state)
    learned = [] if forgotten.first is None else trained_after(checkpoint_dir, state, forgotten.first)
    if as_json:
        print_json({**dataclasses.asdict(forgotten), "checkpoints": learned})
        return
    for group, count in forgotten.pairs.items():
        click.echo(f"{group}: {count:,} pairs removed")
    if forgotten.anchor:
        click.echo(f"{forgotten.anchor} of them from the anchor of the stability gate too")
    if forgotten.first is not None:
        click.echo(f"the next start trains again on what is left, from position {forgotten.from_position:,}")
    if learned:
        click.echo(f"learned from them, and cannot be made again from the journal: {', '.join(learned)}")
