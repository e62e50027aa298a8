"""`serve`: an option for each setting."""

from __future__ import annotations

import dataclasses
import logging
import os

import click

from sidecar.cli.options import Command
from sidecar.settings import SECTIONS, Settings, default_text, option_of, read_settings, unknown_variables, unsteady

_log = logging.getLogger(__name__)
_FIELDS = {each.name: each for each in dataclasses.fields(Settings)}


class _InSections(click.Command):
    """Help that groups the settings in the same sections as the docs."""

    def format_options(self, context: click.Context, formatter: click.HelpFormatter) -> None:
        records = {str(option.name): option.get_help_record(context) for option in self.get_params(context)}
        for title, names in SECTIONS.items():
            with formatter.section(title):
                formatter.write_dl([record for name in names.split() if (record := records.pop(name))])
        with formatter.section("Other"):
            formatter.write_dl([record for record in records.values() if record])


def _an_option_for_each_setting(command: Command) -> Command:
    """Options are passed on as text; `read_settings` parses them like the environment variables."""
    for name, each in reversed(_FIELDS.items()):
        about = each.metadata
        kind = about["kind"]
        others = [about["also"]] if "also" in about else []
        allowed = "" if kind.type in ("PATH", "TEXT") or "|" in kind.type else f"; {kind.allowed}"
        text = f"{about['help']}  [{about['env']}; default: {default_text(name)}{allowed}]"
        command = click.option(option_of(name), *others, name, metavar=kind.type, help=text)(command)
    return command


@click.command("serve", cls=_InSections)
@_an_option_for_each_setting
def serve_command(**options: str | None) -> None:
    """Run the sidecar: take pairs from a Unix socket, train on them, publish checkpoints.

    Each option has an environment variable, named in brackets. If both are given, the option wins.

    \b
    Example:
      vmafx-sidecar serve --socket /tmp/s.sock --checkpoint-dir checkpoints --base-model checkpoints/latest.onnx
    """
    from sidecar import log  # imported here, so that --help does not load numpy and the training code
    from sidecar.serve.server import serve

    settings = read_settings(options, os.environ)
    log.configure(settings.log_format, settings.log_level)
    for words in (*unknown_variables(os.environ), *unsteady(settings)):
        _log.warning("%s", words)
    serve(settings)
