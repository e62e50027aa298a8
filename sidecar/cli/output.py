"""What the commands print: tables and fields for people, one JSON object for scripts."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import click

from sidecar.evaluation.comparison import RESAMPLES, Comparison, names_of
from sidecar.pairs.recorded import said

if TYPE_CHECKING:  # these load onnxruntime, which --help should not
    from sidecar.checkpoints.publishing import Published
    from sidecar.evaluation.evaluate import Evaluation
    from sidecar.fleet.reading import Read
    from sidecar.learning.intervals import Coverage, Intervals
    from sidecar.learning.metrics import Metrics
    from sidecar.offline.pods import PodFigures
    from sidecar.offline.tenants import TenantFigures
    from sidecar.offline.training import Result
    from sidecar.pairs.recorded import RecordedPairs

_MOST_LINES = 100
"""Of a kind that are printed: more files than that are nobody's to read."""
_MOST_SHOWN = 8
"""Of the numbers in a list that are printed."""


def result_json(result: Result) -> dict[str, Any]:
    measured: dict[str, dict[str, Any]] = {}
    for (place, kind), figures in result.metrics.items():
        measured.setdefault(place, {})[kind] = figures.as_json()
    document = {
        "checkpoint": str(result.checkpoint.model),
        "version": result.checkpoint.version,
        "sha256": result.sha256,
        "n_features": result.pairs.features.shape[1],
        "pairs": {"train": len(result.train), "held_out": len(result.held_out), "skipped": result.pairs.skipped},
        "outliers": result.outliers.count,
        "metrics": measured,
        "gate": result.gate._asdict(),
        "parity_max_abs_diff": result.parity_max_abs_diff,
        "seconds": result.seconds,
        "pairs_per_second": result.pairs_per_second,
        "settings": dataclasses.asdict(result.recipe),
        **({"seeds": [figures.as_json() for figures in result.seeds]} if result.seeds else {}),
        **({"refused": result.refused} if result.refused else {}),
        **({"intervals": result.intervals.as_json()} if result.intervals else {}),
        **({"tenants": [each.as_json() for each in result.tenants]} if result.tenants else {}),
        "columns": result.pairs.chosen,
    }
    if result.read:
        document["sampled"] = {**result.read.as_json(), "pods": [each.as_json() for each in result.pods]}
    return {**document, "loso": result.validation.as_json()} if result.validation else document


HEADER = f"{'':24} {'weights':8} {'PLCC':>8} {'SROCC':>8} {'RMSE':>8} {'winsorized':>10} {'pairs':>9}"


def row(name: str, weights: str, measured: Metrics) -> str:
    figures = (f"{value:{form}f}" for value, form in zip(measured[:4], ("8.5", "8.5", "8.3", "10.3"), strict=True))
    return f"{name:24} {weights:8} {' '.join(figures)} {measured.pairs:9}".replace("     nan", "       –")


def print_result(result: Result) -> None:
    validation = result.validation
    print_chosen(result.pairs)
    if validation is not None:
        click.echo("Each group, predicted by a model that was trained on the others:\n" + HEADER)
        for fold in validation.folds:
            click.echo(row(fold.group, "EMA", fold.metrics))
        click.echo(row("all, pooled", "EMA", validation.pooled))
        _print_seeds("pooled", validation.seeds, result)
        click.echo(f"{'mean and lowest PLCC':24} {'':8} {validation.mean_plcc:8.5f} {validation.min_plcc:8.5f}\n")
    click.echo(HEADER)
    for (place, kind), measured in result.metrics.items():
        click.echo(row(place.replace("_", " "), "EMA" if kind == "ema" else kind, measured))
    _print_seeds("held out", result.seeds, result)
    if result.read:
        _print_pods(result.read, result.pods)
    if result.tenants:
        _print_tenants(result.tenants)
    print_skipped(result.pairs)
    if result.outliers.count:
        unusual = result.outliers.in_words(result.pairs.feature_names)
        click.echo(f"left out as unlike all others: {result.outliers.count:,} of {len(result.pairs):,} pairs ({unusual})")
    click.echo(
        f"\ntrained {result.recipe.epochs:,} epochs on {len(result.train):,} pairs in {result.seconds:.1f} s "
        f"({result.pairs_per_second:,.0f} pairs per second)"
    )
    if result.pairs.ungrouped and len(result.held_out):
        click.echo(
            f"no group is known for {result.pairs.ungrouped:,} of {len(result.pairs):,} pairs: those of one encode may be on "
            "both sides of the hold-out, which then flatters"
        )
    click.echo(f"gate: {result.gate.verdict} ({result.gate.reason})")
    click.echo(f"parity with onnxruntime: {result.parity_max_abs_diff:.2g} score points at most")
    if result.intervals:
        for level, widths in result.intervals.half_widths.items():
            click.echo(f"{level:.0%} intervals: ± {widths.min():.2g} to {widths.max():.2g} points, by predicted score")
        click.echo(f"made from {result.intervals.in_words()}")
    _print_checkpoint(result)


def _print_pods(read: Read, pods: list[PodFigures]) -> None:
    click.echo(f"\n{'held out, by pod':34} {'RMSE':>8} {'mean':>8} {'pairs':>9} {'kept':>11} {'read':>13}")
    for each in pods[:_MOST_LINES]:
        measured = each.metrics
        figures = f"{measured.rmse:8.3f} {each.mean_residual:+8.3f} {measured.pairs:9}" if measured else f"{'':16} {0:9}"
        click.echo(f"{(each.pod.name or 'files')[-34:]:34} {figures} {each.pod.kept:11,} {each.pod.read:13,}")
    if len(pods) > _MOST_LINES:
        click.echo(f"and {len(pods) - _MOST_LINES} more pods")
    read_pairs, kept = sum(read.read), sum(read.kept)
    click.echo(
        f"{'all':34} {'':27} {kept:11,} {read_pairs:13,}\n"
        f"read by {read.workers} in {read.seconds:.1f} s ({read_pairs / read.seconds:,.0f} pairs per second) "
        f"from {read.parts:,} files and segments"
    )


def _print_tenants(tenants: list[TenantFigures]) -> None:
    click.echo(f"\n{'held out, by tenant':34} {'shared':>8} {'head':>8} {'pairs':>9} {'of':>9}  head")
    for each in tenants[:_MOST_LINES]:
        figures = f"{each.rmse_of_shared:8.3f} {each.rmse:8.3f}" if each.held_out else f"{'':17}"
        click.echo(f"{each.tenant[-34:]:34} {figures} {each.held_out:9} {each.pairs:9}  {each.gate or 'not published'}")
    if len(tenants) > _MOST_LINES:
        click.echo(f"and {len(tenants) - _MOST_LINES} more tenants")


def _print_seeds(name: str, seeds: list[Metrics], result: Result) -> None:
    for seed, measured in enumerate(seeds, result.recipe.seed):
        click.echo(row(f"{name}, seed {seed}", "EMA", measured))


def _print_checkpoint(done: Result | Published) -> None:
    if done.refused:
        click.echo(done.refused)
    click.echo(f"checkpoint: {done.checkpoint.model}")


def print_evaluation(found: Evaluation) -> None:
    print_chosen(found.pairs)
    rows = [row(name, "", measured) for name, measured in found.groups.items()]
    click.echo("\n".join([HEADER, *rows, row("evaluated", "", found.metrics)]))
    if found.trained_on and found.not_trained_on:
        click.echo(row("not trained on", "", found.not_trained_on))
    print_skipped(found.pairs)
    _print_trained_on(found)
    if found.intervals:
        _print_coverage(found.intervals, found.coverage)


def print_comparison(found: Sequence[Evaluation], compared: Comparison, group_by: str | None) -> None:
    """The figures of each model, with `group_by` their RMSE by group, and the differences from the first."""
    first, names = found[0], [_end(name, 24) for name in names_of([each.model for each in found])]
    for each in dict.fromkeys(str(one.pairs.chosen) for one in found):
        print_chosen(next(one.pairs for one in found if str(one.pairs.chosen) == each))
    click.echo(HEADER)
    for name, one in zip(names, found, strict=True):
        click.echo(row(name, "", one.metrics))
        if one.trained_on and one.not_trained_on:
            click.echo(row("  not trained on", "", one.not_trained_on))
    if group_by is not None:
        click.echo("\n" + " ".join([f"{f'RMSE by {group_by}':24}", f"{'pairs':>9}", *(f"{name:>24}" for name in names)]))
        for group in compared.groups[:_MOST_LINES]:
            own, *others = group.rmse
            cells = [f"{own:24.3f}", *(f"{f'{each:.3f} ({each - own:+.3f})':>24}" for each in others)]
            click.echo(" ".join([f"{group.name:24}", f"{group.pairs:9,}", *cells]))
        if len(compared.groups) > _MOST_LINES:
            click.echo(f"and {len(compared.groups) - _MOST_LINES:,} more groups, which differ less")
    how = f"from {RESAMPLES:,} resamples of {len(compared.groups):,} groups" if compared.differences[0].interval else ""
    click.echo(f"\n{f'RMSE less that of {names[0]}':44} {'95 % interval':>20} {'better in':>10}  {how}")
    for name, other in zip(names[1:], compared.differences, strict=True):
        interval = "{:+.3f} to {:+.3f}".format(*other.interval) if other.interval else "–"
        better = "–" if other.better_in is None else f"{100 * other.better_in:.1f} %"
        click.echo(f"{name:35} {other.rmse_difference:+8.3f} {interval:>20} {better:>10}  {other.in_words}")
    print_skipped(first.pairs)
    for name, one in zip(names, found, strict=True):
        _print_trained_on(one, f"{name}: ")


def _print_trained_on(found: Evaluation, name: str = "") -> None:
    if found.trained_on:
        count = "some" if found.trained_on is True else f"{found.trained_on:,}"
        click.echo(f"{name}{count} of {len(found.pairs):,} pairs were trained on; these figures flatter the model")


def _end(name: str, characters: int) -> str:
    return name if len(name) <= characters else f"…{name[1 - characters :]}"


def print_chosen(pairs: RecordedPairs) -> None:
    """Which columns were taken as what."""
    for chosen in pairs.chosen[:_MOST_LINES]:
        click.echo(said(chosen))
    click.echo("\n".join([*pairs.notes[:_MOST_LINES], ""]))


def print_skipped(pairs: RecordedPairs) -> None:
    """Which rows were not used, a line for each file."""
    for line in pairs.skips[:_MOST_LINES]:
        click.echo(line)
    if len(pairs.skips) > _MOST_LINES:
        click.echo(f"{len(pairs.skips) - _MOST_LINES} more files with skipped rows; skipped in all: {pairs.skipped:,}")


def intervals_json(intervals: Intervals, coverage: Mapping[float, Coverage]) -> dict[str, Any]:
    """The table, and what its intervals covered."""
    return {**intervals.as_json(), "coverage": {f"{level:g}": each._asdict() for level, each in coverage.items()}}


def _print_coverage(intervals: Intervals, coverage: Mapping[float, Coverage]) -> None:
    click.echo(f"\n{'':24} {'covered':>8} {'by group':>8} {'lowest':>8} {'width':>8} {'pairs':>20}")
    for level, each in coverage.items():
        shares = f"{each.covered:8.3f} {each.by_group:8.3f} {each.lowest:8.3f}"
        click.echo(f"{f'{level:.0%} intervals':24} {shares} {each.width:8.3f} {each.pairs:20}")
    click.echo(f"made from {intervals.in_words()}")


def print_published(published: Published, as_json: bool) -> None:
    measured = published.metrics
    if as_json:
        print_json(
            {
                "checkpoint": str(published.checkpoint.model),
                "version": published.checkpoint.version,
                "sha256": published.sha256,
                "metrics": {"held_out": {"ema": measured.as_json()}} if measured else {},
                "gate": published.gate._asdict(),
                "parity_max_abs_diff": published.parity_max_abs_diff,
                **({"refused": published.refused} if published.refused else {}),
            }
        )
    else:
        if measured:
            click.echo(HEADER + "\n" + row("held out", "EMA", measured) + "\n")
        click.echo(f"gate: {published.gate.verdict} ({published.gate.reason})")
        click.echo(f"parity with onnxruntime: {published.parity_max_abs_diff:.2g} score points at most")
        _print_checkpoint(published)


def print_fields(fields: dict[str, Any], indent: str = "") -> None:
    """Print names and values in two columns; nested fields are indented below their name."""
    for name, value in fields.items():
        if isinstance(value, dict) and value:
            click.echo(f"{indent}{name}")
            print_fields(value, indent + "  ")
        elif isinstance(value, list) and value and isinstance(value[0], dict):
            for each in value:
                click.echo(f"{indent}{name:{24 - len(indent)}} {_words(each)}")
        else:
            click.echo(f"{indent}{name:{24 - len(indent)}} {_words(value)}")


def _words(value: Any) -> str:
    if isinstance(value, list) and value:
        if all(isinstance(each, str) for each in value):
            return ", ".join(value)
        more = f", … {len(value)} in all" if len(value) > _MOST_SHOWN else ""
        return f"({', '.join(map(_words, value[:_MOST_SHOWN]))}{more})"
    if isinstance(value, dict) and value:
        return ", ".join(f"{key} {_words(part)}" for key, part in value.items())
    return "–" if value is None or value in ({}, []) else f"{value:g}" if isinstance(value, float) else str(value)


def print_json(document: dict[str, Any]) -> None:
    click.echo(json.dumps(document, indent=2, allow_nan=False))


def print_json_line(document: dict[str, Any]) -> None:
    click.echo(json.dumps(document, allow_nan=False))
