"""The `vmafx-sidecar` command: each subcommand parses, calls one function and prints."""

from __future__ import annotations

import dataclasses
import errno
import logging
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, get_args

import click
from click.core import ParameterSource

from onnx_builder.network import ActivationName, NetworkError
from sidecar import __version__
from sidecar.checkpoints.directory import CheckpointError, trained_after
from sidecar.cli.printing import (
    HEADER,
    draw_again,
    print_fields,
    print_json,
    print_published,
    print_result,
    print_skipped,
    progress_bar,
    replay_bar,
    result_json,
    row,
)
from sidecar.evaluation.report import ReportError, check_report_path, evaluation_document, training_document, write_report
from sidecar.journal.segments import JournalError
from sidecar.learning.recipe import Recipe, TrainingError
from sidecar.models.description import DescriptionError
from sidecar.pairs.errors import RecordedPairsError
from sidecar.pairs.formats import STDIN
from sidecar.settings import Settings, SettingsError, option_of, read_settings

if TYPE_CHECKING:  # imported where used: it loads onnxruntime, and --help should not
    from sidecar.models.base_model import ExportIo
    from sidecar.models.json_scaling import BaseScaler

EXIT_CHECK_SAYS_NO, EXIT_BAD_INPUT, EXIT_INTERRUPTED = 1, 2, 130
_DEFAULTS = Recipe()
_ACTIVATIONS = [name for name in get_args(ActivationName) if name != "sigmoid"]


def main() -> NoReturn:
    """Run the command line. Exit codes: 0 done, 1 a check or the gate says no, 2 usage or bad input, 130 interrupted."""
    logging.basicConfig(format="%(levelname)s: %(message)s", level=logging.INFO, stream=sys.stderr)
    try:
        sys.exit(cli.main(standalone_mode=False) or 0)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except (click.Abort, KeyboardInterrupt):
        click.echo("interrupted", err=True)
        sys.exit(EXIT_INTERRUPTED)
    except (
        RecordedPairsError,
        TrainingError,
        NetworkError,
        CheckpointError,
        DescriptionError,
        JournalError,
        SettingsError,
        ReportError,
    ) as error:
        click.echo(f"Error: {error}", err=True)
        sys.exit(EXIT_BAD_INPUT)
    except MemoryError:
        click.echo("Error: out of memory; give fewer pairs, or a smaller --hidden", err=True)
        sys.exit(EXIT_BAD_INPUT)
    except OSError as error:
        if error.errno != errno.ENOSPC or error.filename is not None:  # those of files are told by whoever writes them
            raise
        click.echo(f"Error: standard output: {error.strerror}", err=True)
        sys.exit(EXIT_BAD_INPUT)


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(__version__, prog_name="vmafx-sidecar")
def cli() -> None:
    """Train small regression models that predict VMAF scores from features."""


def _json_option(command: Callable[..., Any]) -> Callable[..., Any]:
    return click.option("--json", "as_json", is_flag=True, help="Print one JSON object on standard output.")(command)


def _pairs_options(command: Callable[..., Any]) -> Callable[..., Any]:
    for option in (
        click.option("--skip-bad", is_flag=True, help="Count bad rows and skip them, instead of stopping at the first."),
        click.option(
            "--score-max", type=float, default=_DEFAULTS.score_max, show_default=True, help="Highest accepted true_score."
        ),
        click.option(
            "--score-min", type=float, default=_DEFAULTS.score_min, show_default=True, help="Lowest accepted true_score."
        ),
    ):
        command = option(command)
    return command


def _report_option(command: Callable[..., Any]) -> Callable[..., Any]:
    path = click.Path(path_type=Path)
    return click.option("--report", type=path, metavar="FILE.html", help="Write a report: one page that needs no network.")(
        command
    )


_pairs_argument = click.argument("pairs", nargs=-1, required=True, metavar="PAIRS...")
_at_least_one = click.IntRange(min=1)
_positive = click.FloatRange(min=0, min_open=True)
_not_negative = click.FloatRange(min=0)
_share = click.FloatRange(min=0, max=1, max_open=True)


@cli.command("train-offline")
@_pairs_argument
@click.option(
    "--output", type=click.Path(path_type=Path), default=Path("checkpoints"), show_default=True, help="Checkpoint directory."
)
@click.option(
    "--holdout", type=_share, help="Share of pairs, by whole groups, kept out of training.  [default: 0.1; 0 with --group-by]"
)
@click.option(
    "--group-by", metavar="FIELD", help="First validate by leaving out each value of this field once; then train on all."
)
@_pairs_options
@click.option(
    "--base-model",
    type=click.Path(path_type=Path),
    help="ONNX model or PyTorch state-dict to fine-tune; where nothing is there, a fresh head.",
)
@click.option(
    "--base-scaler",
    type=click.Choice(["none", "json"]),
    default="none",
    show_default=True,
    help="json: apply feature_mean and feature_std of the JSON beside the base model.",
)
@click.option(
    "--export-io",
    type=click.Choice(["canonical", "base"]),
    default="canonical",
    show_default=True,
    help="base: publish with the base model's inputs, output and fixed batch, its JSON's scaling left outside.",
)
@click.option("--stream", is_flag=True, help="Train in order, once, as the online sidecar does, with its settings.")
@click.option("--until", type=click.IntRange(min=0), help="With --stream: the last position to train on.  [default: the last]")
@click.option(
    "--epochs",
    type=click.IntRange(min=0),
    help="Passes over the pairs; 0 publishes the base model untouched.  [default: 768,000 / pairs, 10 to 3000]",
)
@click.option("--batch-size", type=_at_least_one, default=_DEFAULTS.batch_size, show_default=True)
@click.option(
    "--lr",
    "learning_rate",
    type=_positive,
    help="Peak learning rate, in standardised units.  [default: 0.04, with adam 0.002; of a base model 0.02, 0.001]",
)
@click.option("--optimizer", type=click.Choice(["sgd", "adam"]), default=_DEFAULTS.optimizer, show_default=True)
@click.option("--momentum", type=_share, default=_DEFAULTS.momentum, show_default=True, help="Of SGD.")
@click.option("--weight-decay", type=_not_negative, default=_DEFAULTS.weight_decay, show_default=True, help="L2 strength.")
@click.option(
    "--group-lasso",
    type=_not_negative,
    help="Strength of the penalty that takes useless features out.  [default: 0.001, with adam 0.1; of a base model 0]",
)
@click.option(
    "--max-grad-norm", type=_positive, default=_DEFAULTS.max_grad_norm, show_default=True, help="Gradient clipping threshold."
)
@click.option(
    "--warmup-steps",
    type=click.IntRange(min=0),
    default=_DEFAULTS.warmup_steps,
    show_default=True,
    help="Linear learning-rate warm-up.",
)
@click.option("--ema-decay", type=_share, default=_DEFAULTS.ema_decay, show_default=True, help="Polyak averaging.")
@click.option(
    "--hidden", type=click.IntRange(1, 65536), default=_DEFAULTS.hidden, show_default=True, help="Width of the hidden layer."
)
@click.option("--activation", type=click.Choice(_ACTIVATIONS), default=_DEFAULTS.activation, show_default=True)
@click.option(
    "--seed", type=click.IntRange(min=0), default=_DEFAULTS.seed, show_default=True, help="The same seed gives the same bytes."
)
@_report_option
@_json_option
def train_offline_command(
    pairs: tuple[str, ...],
    output: Path,
    holdout: float | None,
    group_by: str | None,
    skip_bad: bool,
    report: Path | None,
    as_json: bool,
    base_model: Path | None,
    base_scaler: BaseScaler,
    export_io: ExportIo,
    stream: bool,
    until: int | None,
    **recipe: Any,
) -> int:
    """Train a model on recorded PAIRS, fresh or from a base model, and publish it as a checkpoint.

    PAIRS are .jsonl, .jsonl.gz, .npz or .csv files, a sidecar's state directory, or - for JSON lines on standard input.

    \b
    Example:
      vmafx-sidecar train-offline examples/recorded-80.jsonl.gz --group-by source --output checkpoints
    """
    from sidecar.models.base_model import load_or_fresh
    from sidecar.offline.training import train_offline

    if not recipe["score_min"] < recipe["score_max"]:
        raise click.UsageError(f"--score-min {recipe['score_min']:g} is not below --score-max {recipe['score_max']:g}")
    base = None
    if base_model is not None:
        activation = recipe["activation"]
        base = load_or_fresh(base_model, scaler=base_scaler, export_io=export_io, activation=activation)
    elif base_scaler != "none" or export_io != "canonical":
        raise click.UsageError("--base-scaler and --export-io need --base-model")
    if until is not None and not stream:
        raise click.UsageError("--until needs --stream")
    if report is not None:
        if stream:
            raise click.UsageError("--report does not go with --stream; evaluate --report shows the checkpoint that it makes")
        check_report_path(report, (*pairs, *([base_model, base_model.with_suffix(".json")] if base_model else [])), output)
    if stream:
        _refuse_what_stream_decides()
        from sidecar.online.stream import train_stream

        published = train_stream(pairs, output, until=until, base=base, export_io=export_io, holdout=holdout)
        print_published(published, as_json)
        return EXIT_CHECK_SAYS_NO if published.gate.verdict == "unstable" else 0
    if base is None and recipe["epochs"] == 0:
        raise click.UsageError("--epochs 0 publishes a base model untouched; there is none")
    if holdout is None:
        holdout = 0.0 if group_by else 0.1
    try:
        with progress_bar() as progress:
            result = train_offline(
                pairs,
                output,
                Recipe(**recipe),
                base=base,
                export_io=export_io if base else "canonical",
                holdout=holdout,
                group_by=group_by,
                skip_bad=skip_bad,
                for_report=report is not None,
                progress=progress,
            )
    except KeyboardInterrupt:
        click.echo("nothing was published", err=True)
        raise
    said = result_json(result)
    if as_json:
        print_json(said)
    else:
        print_result(result)
    if report is not None:
        asked: dict[str, Any] = {"holdout": holdout, "group_by": group_by, "skip_bad": skip_bad}
        asked |= {"base_model": base_model and str(base_model), "base_scaler": base_scaler, "export_io": export_io}
        try:
            write_report(report, training_document(result, said, pairs, asked))
        except ReportError as error:
            raise ReportError(f"{error}; the checkpoint is published, without a report") from error
        except KeyboardInterrupt:
            click.echo("the checkpoint is published, without a report", err=True)
            raise
        if not as_json:
            click.echo(f"report: {report}")
    return EXIT_CHECK_SAYS_NO if result.gate.verdict == "unstable" else 0


def _refuse_what_stream_decides() -> None:
    """Raises UsageError for an option that training in order would pass over."""
    context = click.get_current_context()
    heeded = (
        "output",
        "base_model",
        "base_scaler",
        "export_io",
        "activation",
        "holdout",
        "until",
        "stream",
        "as_json",
        "pairs",
    )
    for option in context.command.params:
        name = str(option.name)
        if name not in heeded and context.get_parameter_source(name) is ParameterSource.COMMANDLINE:
            raise click.UsageError(
                f"{option.opts[0]} does not go with --stream, which trains with the online sidecar's settings"
            )


@cli.command("evaluate")
@click.argument("model", type=click.Path(path_type=Path))
@_pairs_argument
@click.option(
    "--base-scaler",
    type=click.Choice(["none", "json"]),
    default="none",
    show_default=True,
    help="json: first apply feature_mean and feature_std of the JSON beside the model.",
)
@click.option("--group-by", metavar="FIELD", help="Also judge the pairs of each value of this field by themselves.")
@_pairs_options
@_report_option
@_json_option
def evaluate_command(model: Path, pairs: tuple[str, ...], report: Path | None, as_json: bool, **settings: Any) -> None:
    """Score an ONNX MODEL on recorded PAIRS with onnxruntime.

    \b
    Example:
      vmafx-sidecar evaluate checkpoints/latest.onnx examples/recorded-80.jsonl.gz
    """
    from sidecar.evaluation.evaluate import evaluate

    if report is not None:
        check_report_path(report, (model, model.with_suffix(".json"), *pairs))
    found = evaluate(model, pairs, **settings, for_report=report is not None)
    said: dict[str, Any] = {"model": str(model), **found.metrics.as_json(), "skipped": found.pairs.skipped}
    if found.groups:
        said["groups"] = [{"group": name, **measured.as_json()} for name, measured in found.groups.items()]
    if as_json:
        print_json(said)
    else:
        rows = [row(name, "", measured) for name, measured in found.groups.items()]
        click.echo("\n".join([HEADER, *rows, row("evaluated", "", found.metrics)]))
        print_skipped(found.pairs.skipped, found.pairs.first_skipped)
    if report is not None:
        write_report(report, evaluation_document(model, found, said, pairs, settings))
        if not as_json:
            click.echo(f"report: {report}")


@cli.command("inspect")
@click.argument("model", type=click.Path(path_type=Path))
@_json_option
def inspect_command(model: Path, as_json: bool) -> None:
    """Say what a MODEL is: architecture, inputs and outputs, opset, digest, and where it comes from.

    MODEL is an ONNX file or a PyTorch state-dict.

    \b
    Example:
      vmafx-sidecar inspect checkpoints/latest.onnx
    """
    from sidecar.evaluation.inspect import inspect

    about = inspect(model)
    if as_json:
        print_json(about)
        return
    print_fields(about)


@cli.command("verify")
@click.argument("paths", nargs=-1, required=True, type=click.Path(path_type=Path), metavar="PATH...")
@_json_option
def verify_command(paths: tuple[Path, ...], as_json: bool) -> int:
    """Check models, or all checkpoints of directories: digest, JSON, onnx.checker, operators, parity with numpy.

    \b
    Example:
      vmafx-sidecar verify checkpoints
    """
    from sidecar.checkpoints.verify import verify

    verified = verify(paths)
    if as_json:
        models = [
            {"model": str(one.model), "ok": one.ok, "failed": {check: wrong for check, wrong in one.checks.items() if wrong}}
            for one in verified
        ]
        print_json({"ok": all(one.ok for one in verified), "models": models})
    else:
        for one in verified:
            click.echo(f"{one.model}: {'ok' if one.ok else 'FAILED'} ({', '.join(one.checks)})")
            for check, wrong in one.checks.items():
                if wrong:
                    click.echo(f"  {check}: {wrong}")
    return 0 if all(one.ok for one in verified) else EXIT_CHECK_SAYS_NO


_http_option = click.option(
    "--http", envvar="VMAFX_SIDECAR_HTTP", default="127.0.0.1:9091", show_default=True, help="Address of the sidecar's HTTP."
)


def _settings_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """An option for each setting of the table; their texts are read by `read_settings`."""
    for each in reversed(dataclasses.fields(Settings)):
        about = each.metadata
        default = about.get("otherwise") or _default_text(each.name, each.default)
        text = f"{about['help']}  [{about['env']}; default: {default}]"
        command = click.option(option_of(each.name), each.name, metavar="VALUE", help=text)(command)
    return command


def _default_text(name: str, default: Any) -> str:
    if name == "socket_mode":
        return f"{default:04o}"
    return str(int(default)) if isinstance(default, bool) else f"{default:g}" if isinstance(default, float) else str(default)


@cli.command("serve")
@_settings_options
def serve_command(**options: str | None) -> None:
    """Run the sidecar: take pairs over a Unix socket, train, publish checkpoints.

    Each option has an environment variable; the option beats it.

    \b
    Example:
      vmafx-sidecar serve --socket /tmp/s.sock --checkpoint-dir checkpoints --base-model checkpoints/latest.onnx
    """
    from sidecar import log
    from sidecar.serve.server import serve

    settings = read_settings(options, os.environ)
    log.configure(settings.log_format, settings.log_level)
    serve(settings)


def _directory_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """A sidecar's directories, as its own environment variables name them."""
    path = click.Path(path_type=Path)
    for option in (
        click.option("--state-dir", type=path, envvar="VMAFX_SIDECAR_STATE_DIR", help="[default: state in the checkpoint dir]"),
        click.option(
            "--checkpoint-dir",
            type=path,
            envvar="VMAFX_SIDECAR_CHECKPOINT_DIR",
            default=Settings.checkpoint_dir,
            show_default=True,
        ),
    ):
        command = option(command)
    return command


@cli.command("promote")
@click.argument("version", type=click.IntRange(min=1))
@_directory_options
@_json_option
def promote_command(version: int, checkpoint_dir: Path, state_dir: Path | None, as_json: bool) -> None:
    """Verify checkpoint VERSION and point stable.onnx at it, forward or back.

    From then on the gate judges by it, and by the pairs held out now.

    \b
    Example:
      vmafx-sidecar promote 3 --checkpoint-dir checkpoints
    """
    from sidecar.checkpoints.promotion import promote_by_hand

    checkpoint = promote_by_hand(version, checkpoint_dir, state_dir or checkpoint_dir / "state")
    if as_json:
        print_json({"version": version, "stable": str(checkpoint.model)})
    else:
        click.echo(f"stable.onnx is {checkpoint.name}")


@cli.command("forget")
@click.argument("groups", nargs=-1, required=True, metavar="GROUP...")
@_directory_options
@_json_option
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


@cli.command("replay")
@_pairs_argument
@click.option(
    "--socket",
    type=click.Path(path_type=Path),
    envvar="VMAFX_SIDECAR_SOCKET",
    default=Settings.socket,
    show_default=True,
    help="The sidecar's Unix socket.",
)
@click.option("--rate", type=_positive, help="Pairs a second.  [default: as fast as answers come]")
@_json_option
def replay_command(pairs: tuple[str, ...], socket: Path, rate: float | None, as_json: bool) -> int:
    """Send recorded PAIRS to a running sidecar, as their producer would, and say how it answered.

    Exit code 1 where it refused any.

    \b
    Example:
      vmafx-sidecar replay examples/recorded-80.jsonl.gz --socket /tmp/s.sock
    """
    from sidecar.client.replay import ReplayError, read_requests, replay

    try:
        known = None if STDIN in pairs else lambda: sum(1 for _ in read_requests(pairs))
        with replay_bar(known) as progress:
            summary = replay(pairs, socket, rate=rate, progress=progress)
    except ReplayError as error:
        click.echo(f"Error: {error}", err=True)
        return EXIT_BAD_INPUT
    if as_json:
        print_json(summary.as_json())
    else:
        click.echo(
            f"{summary.accepted} accepted, {summary.duplicate} duplicates, {summary.refused + summary.retryable} refused"
        )
        if summary.first_refusal:
            click.echo(f"the first refused: {summary.first_refusal}")
        for checkpoint in summary.checkpoints:
            click.echo(f"checkpoint: {checkpoint}")
        latencies = (summary.latency_ms(share) for share in (0.5, 0.99, 1.0))
        p50, p99, most = (f"{value:.3g}" for value in latencies if value is not None)
        click.echo(
            f"{summary.pairs_per_second:,.0f} pairs per second; answered in {p50} ms (median), {p99} (99 %), {most} (longest)"
        )
    return EXIT_CHECK_SAYS_NO if summary.refused or summary.retryable else 0


@cli.command("status")
@_http_option
@click.option("--watch", is_flag=True, help="Go on looking, every two seconds, until Ctrl-C.")
@_json_option
def status_command(http: str, watch: bool, as_json: bool) -> int:
    """Look at a running sidecar.

    \b
    Example:
      vmafx-sidecar status --watch
    """
    from sidecar.monitoring.fetch import HttpError, fetch_status
    from sidecar.monitoring.terminal import format_status

    if watch and as_json:
        raise click.UsageError("--watch is for people; scripts find the same at /api/history and /api/checkpoints")
    try:
        if watch:
            from sidecar.monitoring.terminal import watch as looks

            draw_again(looks(http))
        document = fetch_status(http)
    except ValueError as error:
        raise click.BadParameter(str(error), param_hint="--http") from error
    except HttpError as error:
        click.echo(f"Error: {error}", err=True)
        return EXIT_CHECK_SAYS_NO
    if as_json:
        print_json(document)
    else:
        click.echo(format_status(document))
    return 0


@cli.command("probe")
@_http_option
@_json_option
def probe_command(http: str, as_json: bool) -> int:
    """Say whether a sidecar accepts pairs: exit code 0 if it does, 1 if not."""
    from sidecar.monitoring.fetch import probe

    try:
        ready, line = probe(http)
    except ValueError as error:
        raise click.BadParameter(str(error), param_hint="--http") from error
    if as_json:
        print_json({"ready": ready, "message": line})
    else:
        click.echo(line)
    return 0 if ready else EXIT_CHECK_SAYS_NO
