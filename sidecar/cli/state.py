"""`forget`: the command that deletes recorded pairs."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import click

from sidecar.checkpoints.directory import trained_after
from sidecar.cli.options import directory_options, json_option
from sidecar.cli.output import print_json


@click.command("forget")
@click.argument("names", nargs=-1, required=True, metavar="GROUP...")
@click.option("--tenant", "of_tenants", is_flag=True, help="Each GROUP is the name of a tenant: delete all its pairs.")
@directory_options
@json_option
def forget_command(
    names: tuple[str, ...], of_tenants: bool, checkpoint_dir: Path, state_dir: Path | None, as_json: bool
) -> None:
    """Delete all recorded pairs of a GROUP for good. The sidecar must be stopped.

    For pairs without a group, GROUP is the job_id. The next start trains again on the remaining pairs, as if the deleted ones
    had never been there. Checkpoints stay; the command lists those that were trained on deleted pairs.

    \b
    Example:
      vmafx-sidecar forget clip-7-crf-23 --checkpoint-dir checkpoints
    """
    from sidecar.state.forget import forget

    state = state_dir or checkpoint_dir / "state"
    forgotten = forget(names, state, of_tenants)
    learned = [] if forgotten.first is None else trained_after(checkpoint_dir, state, forgotten.first)
    if as_json:
        print_json({**dataclasses.asdict(forgotten), "checkpoints": learned})
        return
    for name, count in forgotten.pairs.items():
        click.echo(f"{name}: {count:,} pairs deleted")
    if forgotten.anchor:
        click.echo(f"{forgotten.anchor} of them were also in the gate's anchor, and are deleted from it")
    if forgotten.first is not None:
        click.echo(f"the next start trains again on the remaining pairs, from position {forgotten.from_position:,}")
    if learned:
        click.echo(f"trained on deleted pairs, and no longer reproducible from the journal: {', '.join(learned)}")
