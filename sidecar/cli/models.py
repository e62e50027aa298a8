"""Commands about models: `evaluate`, `inspect` and `verify`, and `promote`, which makes a checkpoint the stable one."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from sidecar.cli import exit_codes
from sidecar.cli.options import (
    PATH,
    base_scaler_option,
    columns_options,
    directory_options,
    json_option,
    pairs_argument,
    pairs_options,
    report_option,
)
from sidecar.cli.output import intervals_json, print_comparison, print_evaluation, print_fields, print_json
from sidecar.evaluation.document import comparison_document, evaluation_document
from sidecar.evaluation.report import check_report_path, write_report
from sidecar.pairs.tables.choice import Columns

if TYPE_CHECKING:  # it loads onnxruntime, which --help should not
    from sidecar.evaluation.evaluate import Evaluation


@click.command("evaluate")
@click.argument("model", type=PATH, metavar="MODEL...")
@pairs_argument
@base_scaler_option("json: first apply feature_mean and feature_std from the JSON beside a model.")
@click.option("--group-by", metavar="FIELD", help="Also print the figures for each value of this field.")
@click.option(
    "--held-out", is_flag=True, help="Only the pairs that each model's hold-out kept out of its training, as its JSON says."
)
@pairs_options
@columns_options
@report_option
@json_option
def evaluate_command(
    model: Path, pairs: tuple[str, ...], report: Path | None, as_json: bool, columns: Columns, **settings: Any
) -> None:
    """Score an ONNX MODEL on recorded PAIRS with onnxruntime.

    Several models, whose names end in .onnx and come before the pairs, are compared with the first of them.

    \b
    Example:
      vmafx-sidecar evaluate checkpoints/latest.onnx examples/recorded-80.jsonl.gz --held-out
      vmafx-sidecar evaluate checkpoints/stable.onnx checkpoints/latest.onnx pairs.jsonl --report compared.html
    """
    from sidecar.evaluation.comparison import compare
    from sidecar.evaluation.evaluate import evaluate

    models, pairs = _models_and_pairs(model, pairs)
    if report is not None:
        check_report_path(report, (*models, *(each.with_suffix(".json") for each in models), *pairs))
    several = len(models) > 1
    found = evaluate(models, pairs, **settings, columns=columns, names=several or report is not None)
    compared = compare([each.predicted for each in found], found[0].pairs) if several else None
    about = [_evaluation_json(each) for each in found]
    said = {"models": about, "comparison": compared.as_json([*map(str, models)])} if compared else about[0]
    if as_json:
        print_json(said)
    elif compared:
        print_comparison(found, compared, settings["group_by"])
    else:
        print_evaluation(found[0])
    if report is not None:
        if compared:
            document = comparison_document(found, compared, said, pairs, settings)
        else:
            document = evaluation_document(found[0], said, pairs, settings)
        write_report(report, document)
        if not as_json:
            click.echo(f"report: {report}")


def _models_and_pairs(model: Path, others: tuple[str, ...]) -> tuple[list[Path], tuple[str, ...]]:
    """Which of the arguments after the first are models too. Raises UsageError."""
    models = [Path(each) for each in itertools.takewhile(_is_model, others)]
    pairs = others[len(models) :]
    if not pairs:
        raise click.UsageError("Missing argument 'PAIRS...': all arguments are models, as they end in .onnx")
    if late := next(filter(_is_model, pairs), None):
        raise click.UsageError(f"{late}: models come before pairs")
    return [model, *models], pairs


def _is_model(argument: str) -> bool:
    return argument.lower().endswith(".onnx")


def _evaluation_json(found: Evaluation) -> dict[str, Any]:
    said: dict[str, Any] = {
        "model": str(found.model),
        **found.metrics.as_json(),
        "skipped": found.pairs.skipped,
        "columns": found.pairs.chosen,
    }
    if found.trained_on:
        said["trained_on"] = found.trained_on
        if found.not_trained_on:
            said["not_trained_on"] = found.not_trained_on.as_json()
    if found.groups:
        said["groups"] = [{"group": name, **measured.as_json()} for name, measured in found.groups.items()]
    if found.intervals:
        said["intervals"] = intervals_json(found.intervals, found.coverage)
    return said


@click.command("inspect")
@click.argument("model", type=PATH)
@json_option
def inspect_command(model: Path, as_json: bool) -> None:
    """Describe a MODEL: architecture, inputs and outputs, opset, digest and origin.

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


@click.command("verify")
@click.argument("paths", nargs=-1, required=True, type=PATH, metavar="PATH...")
@json_option
def verify_command(paths: tuple[Path, ...], as_json: bool) -> int:
    """Check models, all checkpoints of a directory, or a sidecar's state directory.

    Of a model: digest, JSON, onnx.checker, operators, parity with numpy. Of a state directory: the checksums of everything in
    it. Nothing is changed.

    \b
    Example:
      vmafx-sidecar verify checkpoints
    """
    from sidecar.checkpoints.verify import verify
    from sidecar.state.verify import check_state, is_state_directory

    states = [path for path in paths if is_state_directory(path)]
    verified = verify([path for path in paths if path not in states])
    findings = [finding for path in states for finding in check_state(path)]
    ok = all(one.ok for one in verified) and not any(finding.wrong for finding in findings)
    if as_json:
        models = [
            {"model": str(one.model), "ok": one.ok, "failed": {check: wrong for check, wrong in one.checks.items() if wrong}}
            for one in verified
        ]
        files = [
            {"file": str(each.path), "ok": not each.wrong, **({"wrong": each.wrong, "lost": each.lost} if each.wrong else {})}
            for each in findings
        ]
        print_json({"ok": ok, "models": models, **({"state": files} if states else {})})
    else:
        for one in verified:
            click.echo(f"{one.model}: {'ok' if one.ok else 'FAILED'} ({', '.join(one.checks)})")
            for check, wrong in one.checks.items():
                if wrong:
                    click.echo(f"  {check}: {wrong}")
        for each in findings:
            click.echo(f"{each.path}: {f'DAMAGED: {each.wrong}' if each.wrong else 'ok'}")
            if each.lost:
                click.echo(f"  lost: {each.lost}")
    return 0 if ok else exit_codes.CHECK_SAYS_NO


@click.command("promote")
@click.argument("version", type=click.IntRange(min=1))
@directory_options
@json_option
def promote_command(version: int, checkpoint_dir: Path, state_dir: Path | None, as_json: bool) -> None:
    """Verify checkpoint VERSION and point stable.onnx at it, forward or back.

    From then on the gate compares with this checkpoint, and the anchor is renewed from the newest snapshot.

    \b
    Example:
      vmafx-sidecar promote 3 --checkpoint-dir checkpoints
    """
    from sidecar.checkpoints.promotion import promote_by_hand

    checkpoint = promote_by_hand(version, checkpoint_dir, state_dir or checkpoint_dir / "state")
    if as_json:
        print_json({"version": version, "stable": str(checkpoint.model)})
    else:
        click.echo(f"stable.onnx now points to {checkpoint.name}")
