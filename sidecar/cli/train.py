"""The command `train-offline`."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import click
from click.core import ParameterSource

from onnx_builder.network import ActivationName
from sidecar.cli import exit_codes
from sidecar.cli.options import (
    NOT_NEGATIVE,
    PATH,
    POSITIVE,
    SHARE,
    base_scaler_option,
    columns_options,
    json_option,
    pairs_argument,
    pairs_options,
    report_option,
)
from sidecar.cli.output import print_json, print_published, print_result, result_json
from sidecar.cli.progress import reading_bar, training_bar
from sidecar.evaluation.document import training_document
from sidecar.evaluation.report import ReportError, check_report_path, write_report
from sidecar.learning.recipe import Recipe

if TYPE_CHECKING:  # imported where they are used, so that --help does not load onnxruntime
    from sidecar.models.base_model import BaseModel, ExportIo
    from sidecar.models.json_scaling import BaseScaler
    from sidecar.offline.training import Result
    from sidecar.pairs.tables.choice import Columns

_DEFAULTS = Recipe()
_ACTIVATIONS = [name for name in get_args(ActivationName) if name != "sigmoid"]
_AT_LEAST_ONE, _FROM_ZERO = click.IntRange(min=1), click.IntRange(min=0)
_GOES_WITH_STREAM = (
    "features", "target", "group", "job", "window", "any_target",
    "output", "base_model", "base_scaler", "base_activation", "base_output", "base_key", "export_io", "activation", "holdout",
    "until", "stream", "as_json", "pairs",
)  # fmt: skip


@click.command("train-offline")
@pairs_argument
@click.option(
    "--output", "--checkpoint-dir", type=PATH, default=Path("checkpoints"), show_default=True, help="Checkpoint directory."
)
@click.option(
    "--holdout",
    "--holdout-fraction",
    type=SHARE,
    help="Share of pairs to keep out of training, by whole groups, and to judge the result by.  "
    "[default: 0.1; 0 with --group-by; 0.05 with --stream]",
)
@click.option(
    "--group-by",
    metavar="FIELD",
    help="Cross-validate first: leave out each value of this field once. Then train on all pairs.",
)
@click.option(
    "--tenant",
    metavar="FIELD",
    help="Publish also a head for each value of this field, in tenants/VALUE of the checkpoint directory.",
)
@pairs_options
@columns_options
@click.option(
    "--base-model",
    type=PATH,
    help="ONNX model or PyTorch state-dict to fine-tune. If the file does not exist, training starts from a new model.",
)
@base_scaler_option("json: apply feature_mean and feature_std from the JSON beside the base model.")
@click.option(
    "--base-activation",
    type=click.Choice([*get_args(ActivationName), "silu", "mish", "hardswish", "elu", "selu", "softplus"]),
    help="Activation between the layers of a PyTorch state-dict.  [default: the one that the file names, else --activation]",
)
@click.option(
    "--base-output",
    metavar="FUNCTION",
    help="What a PyTorch model does with the value of its last layer, such as sigmoid*100 or *23+79; identity: nothing.",
)
@click.option(
    "--base-key",
    metavar="KEY",
    help="Which dict of tensors in a PyTorch file to read, or how its tensors' names begin; what is beside it is ignored.",
)
@click.option(
    "--export-io",
    type=click.Choice(["canonical", "base"]),
    default="canonical",
    show_default=True,
    help="base: keep the base model's inputs, output and fixed batch size, and leave the scaling in the JSON.",
)
@click.option(
    "--stream", is_flag=True, help="Train on each pair once, in order, like the online sidecar and with its settings."
)
@click.option(
    "--until", type=_FROM_ZERO, help="With --stream: the last position in the journal to train on.  [default: the last]"
)
@click.option(
    "--epochs",
    type=_FROM_ZERO,
    help="Passes over the pairs; 0 publishes the base model unchanged.  [default: 3,072,000 / pairs, from 10 to 3000]",
)
@click.option("--batch-size", type=_AT_LEAST_ONE, default=_DEFAULTS.batch_size, show_default=True, help="Pairs in each step.")
@click.option(
    "--learning-rate",
    "--lr",
    "learning_rate",
    type=POSITIVE,
    help="Peak learning rate, for features and scores of mean 0 and deviation 1.  [default: 0.02, with adam 0.001]",
)
@click.option(
    "--loss",
    type=click.Choice(["huber", "squared"]),
    default=_DEFAULTS.loss,
    show_default=True,
    help="huber: an error beyond --huber-delta pulls no harder than one of that size, so that wrong scores do little harm.",
)
@click.option(
    "--huber-delta",
    type=POSITIVE,
    default=_DEFAULTS.huber_delta,
    show_default=True,
    help="For --loss huber, in standard deviations of the scores.",
)
@click.option(
    "--optimizer",
    type=click.Choice(["sgd", "adam"]),
    default=_DEFAULTS.optimizer,
    show_default=True,
    help="SGD with momentum, or Adam.",
)
@click.option("--momentum", type=SHARE, default=_DEFAULTS.momentum, show_default=True, help="Momentum of SGD.")
@click.option(
    "--weight-decay", type=NOT_NEGATIVE, default=_DEFAULTS.weight_decay, show_default=True, help="L2 regularisation strength."
)
@click.option(
    "--group-lasso",
    type=NOT_NEGATIVE,
    help="Strength of the penalty that switches off features that do not help.  "
    "[default: 0.0003, with adam 0.03; for a base model 0]",
)
@click.option(
    "--max-grad-norm",
    type=POSITIVE,
    default=_DEFAULTS.max_grad_norm,
    show_default=True,
    help="Gradients with a larger norm are scaled down to this.",
)
@click.option(
    "--warmup-steps",
    type=_FROM_ZERO,
    default=_DEFAULTS.warmup_steps,
    show_default=True,
    help="Steps over which the learning rate rises to its peak.",
)
@click.option(
    "--ema-decay",
    type=SHARE,
    default=_DEFAULTS.ema_decay,
    show_default=True,
    help="Decay of the moving average of the weights, which is what gets published.",
)
@click.option(
    "--hidden",
    type=click.IntRange(1, 65536),
    default=_DEFAULTS.hidden,
    show_default=True,
    help="Width of the hidden layer of a new model.",
)
@click.option(
    "--activation",
    type=click.Choice(_ACTIVATIONS),
    default=_DEFAULTS.activation,
    show_default=True,
    help="Activation of a new model, and of a PyTorch state-dict that does not name its own.",
)
@click.option(
    "--seed", type=_FROM_ZERO, default=_DEFAULTS.seed, show_default=True, help="Seed of the initial weights and of shuffling."
)
@click.option(
    "--seeds",
    type=_AT_LEAST_ONE,
    default=1,
    show_default=True,
    help="Train with so many seeds, from --seed on, and show the figures of each; the first is published.",
)
@click.option("--ensemble", is_flag=True, help="Publish the average of the models of all --seeds, as one wider model.")
@click.option(
    "--device",
    type=click.Choice(["cpu", "cuda"]),
    default="cpu",
    show_default=True,
    help="cuda: train all groups of --group-by and all --seeds side by side on an NVIDIA GPU.",
)
@click.option("--workers", type=_AT_LEAST_ONE, help="Read PAIRS with so many processes, and train on a sample of them.")
@click.option(
    "--scheduler",
    metavar="tls://HOST:PORT",
    help="Read them with the workers of this Dask scheduler, which have the same files under the same names.",
)
@click.option(
    "--sample",
    type=_AT_LEAST_ONE,
    default=2_000_000,
    show_default=True,
    help="With --workers or --scheduler: most pairs to keep.",
)
@click.option(
    "--per-group",
    type=_AT_LEAST_ONE,
    default=1000,
    show_default=True,
    help="With --workers or --scheduler: most pairs to keep of an encode in each tenth of the score range.",
)
@report_option
@json_option
def train_offline_command(
    pairs: tuple[str, ...],
    output: Path,
    holdout: float | None,
    group_by: str | None,
    tenant: str | None,
    skip_bad: bool,
    report: Path | None,
    as_json: bool,
    base_model: Path | None,
    base_scaler: BaseScaler,
    base_activation: str | None,
    base_output: str | None,
    base_key: str | None,
    export_io: ExportIo,
    stream: bool,
    until: int | None,
    columns: Columns,
    seeds: int,
    ensemble: bool,
    device: str,
    workers: int | None,
    scheduler: str | None,
    sample: int,
    per_group: int,
    **recipe: Any,
) -> int:
    """Train a model on recorded PAIRS, from scratch or from a base model, and publish it as a checkpoint.

    PAIRS are tables: JSON lines, CSV, TSV, parquet, feather, .npz, logs of libvmaf, gzipped or not; directories of these; a
    sidecar's state directory; or - for JSON lines on standard input.

    \b
    Example:
      vmafx-sidecar train-offline examples/recorded-80.jsonl.gz --group-by source --output checkpoints
      vmafx-sidecar train-offline logs/*.json --window 6
    """
    from sidecar.fleet.reading import Sampling
    from sidecar.fleet.sample import Limits
    from sidecar.fleet.workers import cluster, processes
    from sidecar.models.base_model import load_or_fresh
    from sidecar.models.pytorch.state_dict import Choices
    from sidecar.offline.seeds import Seeds
    from sidecar.offline.training import train_offline

    choices = Choices(base_activation, recipe["activation"], base_output or "", base_key or "")
    of_base = choices.given or base_scaler != "none" or export_io != "canonical"
    _check_options(recipe, base_model, of_base, stream, until, report)
    base: BaseModel | None = None
    if base_model is not None:
        base = load_or_fresh(base_model, scaler=base_scaler, export_io=export_io, choices=choices)
    if report is not None:
        check_report_path(report, (*pairs, *([base_model, base_model.with_suffix(".json")] if base_model else [])), output)
    if stream:
        from sidecar.online.stream import train_stream

        published = train_stream(pairs, output, until=until, base=base, export_io=export_io, holdout=holdout, columns=columns)
        print_published(published, as_json)
        return exit_codes.of_gate(published.gate.verdict)
    if base is None and recipe["epochs"] == 0:
        raise click.UsageError("--epochs 0 publishes the base model unchanged, but there is no base model")
    if group_by and tenant:
        raise click.UsageError("--group-by and --tenant cannot be used together")
    if ensemble and seeds == 1:
        raise click.UsageError("--ensemble needs --seeds 2 or more")
    if workers and scheduler:
        raise click.UsageError("--workers and --scheduler cannot be used together")
    if not (workers or scheduler) and _given("sample", "per_group"):
        raise click.UsageError("--sample and --per-group need --workers or --scheduler: otherwise all pairs are trained on")
    open_device = None
    if device == "cuda":
        from sidecar.learning.device.cuda import open_cuda

        open_device = open_cuda
        open_device()  # to say at once what is missing
    if holdout is None:
        holdout = 0.0 if group_by else 0.1
    try:
        with contextlib.ExitStack() as stack:
            sampling = None
            if workers or scheduler:
                opened = stack.enter_context(cluster(scheduler) if scheduler else processes(workers or 1))
                sampling = Sampling(opened, Limits(sample, per_group), stack.enter_context(reading_bar()))
            progress = stack.enter_context(training_bar())
            result = train_offline(
                pairs,
                output,
                Recipe(**recipe),
                base=base,
                export_io=export_io if base else "canonical",
                holdout=holdout,
                group_by=group_by,
                tenant=tenant,
                skip_bad=skip_bad,
                for_report=report is not None,
                progress=progress,
                columns=columns,
                seeds=Seeds(seeds, ensemble, open_device),
                sampling=sampling,
            )
    except KeyboardInterrupt:
        click.echo("nothing was published", err=True)
        raise
    if as_json:
        print_json(result_json(result))
    else:
        print_result(result)
    if report is not None:
        asked: dict[str, Any] = {"holdout": holdout, "group_by": group_by, "tenant": tenant, "skip_bad": skip_bad}
        asked |= {"base_model": base_model and str(base_model), "base_scaler": base_scaler, "export_io": export_io}
        _write_report(report, result, pairs, asked)
        if not as_json:
            click.echo(f"report: {report}")
    return exit_codes.of_gate(result.gate.verdict)


def _write_report(report: Path, result: Result, pairs: tuple[str, ...], asked: dict[str, Any]) -> None:
    try:
        write_report(report, training_document(result, result_json(result), pairs, asked))
    except ReportError as error:
        raise ReportError(f"{error}; the checkpoint was published without a report") from error
    except KeyboardInterrupt:
        click.echo("the checkpoint was published without a report", err=True)
        raise


def _check_options(
    recipe: dict[str, Any],
    base_model: Path | None,
    of_base: bool,
    stream: bool,
    until: int | None,
    report: Path | None,
) -> None:
    """Raises UsageError for options that cannot be combined."""
    low, high = recipe["score_min"], recipe["score_max"]
    if not low < high:
        raise click.UsageError(f"--score-min {low:g} is not below --score-max {high:g}")
    if max(-low, high) > 3.4e38:
        raise click.UsageError(f"--score-min {low:g}, --score-max {high:g}: expected numbers from -3.4e+38 to 3.4e+38")
    if base_model is None and of_base:
        raise click.UsageError("--base-activation, --base-output, --base-key, --base-scaler and --export-io need --base-model")
    if until is not None and not stream:
        raise click.UsageError("--until needs --stream")
    if stream and report is not None:
        raise click.UsageError("--report cannot be used with --stream; run evaluate --report on the checkpoint instead")
    for option in click.get_current_context().command.params if stream else ():
        if option.name not in _GOES_WITH_STREAM and _given(str(option.name)):
            raise click.UsageError(
                f"{option.opts[0]} cannot be used with --stream, which trains with the online sidecar's settings"
            )


def _given(*names: str) -> bool:
    """Whether one of these options is on the command line."""
    context = click.get_current_context()
    return any(context.get_parameter_source(name) is ParameterSource.COMMANDLINE for name in names)
