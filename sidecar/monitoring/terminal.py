"""`status`, and `status --watch`: the live page in a terminal, drawn again every two seconds."""

from __future__ import annotations

import shutil
import textwrap
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import datetime
from typing import Any

from sidecar.monitoring.fetch import HttpError, NoSidecarError, fetch_checkpoints, fetch_history
from sidecar.monitoring.status import one_line
from sidecar.monitoring.verdict.rules import DOWN

EVERY_S = 2.0
_SHOWN_CHECKPOINTS = 3
_NARROWEST = 40
_BARS = "▁▂▃▄▅▆▇█"
_LEAST_HEIGHT = 0.01
"""Of a chart, as a share of its largest value: a smaller change is drawn as what it is, next to nothing."""
Paint = Callable[[str, str], str]
"""What makes a text stand out: the text, and `good`, `bad` or `quiet`."""
_CHARTS = {"RMSE": "prequential_rmse", "PLCC": "prequential_plcc", "loss": "loss", "pairs/s": "pairs_per_second"}


def plain(text: str, how: str) -> str:
    """Text as it is."""
    return text


def watch(address: str, paint: Paint = plain, sleep: Callable[[float], object] = time.sleep) -> Iterator[str]:
    """Yield what to show of the sidecar at an address, again and again. If it does not answer, say so above its last figures.

    The width is that of the terminal, or 80 characters. Raises ValueError for a bad address, and NoSidecarError if something
    else answers and a sidecar never has.
    """
    known = ""
    while True:
        width = max(_NARROWEST, shutil.get_terminal_size().columns)
        try:
            history, checkpoints = fetch_history(address), fetch_checkpoints(address)
        except HttpError as error:
            if isinstance(error, NoSidecarError) and not known:
                raise
            what = "SIDECAR LOST" if known else "NO SIDECAR"
            lost = textwrap.wrap(f"{what} at {_clock(time.time())}: {error}. Trying again. {DOWN.do if known else ''}", width)
            yield "\n".join(paint(line, "bad") for line in lost) + f"\n\n{known}"
        else:
            known = picture(history, checkpoints, width, paint)
            yield known
        sleep(EVERY_S)


def picture(history: Mapping[str, Any], checkpoints: Mapping[str, Any], width: int = 80, paint: Paint = plain) -> str:
    """The documents of /api/history and /api/checkpoints for people, with what matters most in the first 24 lines."""
    now = history["now"]
    buffers = {
        "current_samples": now["current_samples"],
        "replay buffer": f"{now['replay_size']:,} of {now['replay_capacity']:,}",
        "held out": f"{now['held_out_size']:,} of {now['held_out_capacity']:,}",
    }
    figures = buffers | {name: now[name] for name in _WATCHED if name in now}
    settings = " ".join(f"{one_line(name)}={one_line(str(value))}" for name, value in history["settings"].items())
    parts = (
        verdict(now, width, paint, f"vmafx-sidecar, {_clock(now['time'])}: "),
        _sparklines(history, width),
        _checkpoint_lines(checkpoints, width),
        [format_status(figures, width)],
        [textwrap.fill(f"settings: {settings}", width, subsequent_indent="  ", break_on_hyphens=False)],
    )
    return "\n\n".join("\n".join(part) for part in parts)


def verdict(told: Mapping[str, Any], width: int = 80, paint: Paint = plain, title: str = "") -> list[str]:
    """What is wrong, since when and what to do, in lines of at most `width` characters; first, after a title, the phase.

    told: a status document. What has not lasted long enough for an alert is told last, with the time of the alert in place of
    what to do.
    """
    findings = [each for each in told.get("findings", ()) if isinstance(each, Mapping)]
    firing = [each for each in findings if "alert_at" not in each]
    phase = one_line(str(told["phase"]))
    if not told.get("making_progress", True):
        phase += ", but not making progress"
    if firing:
        head = f"{phase}{', but' if phase == 'running' else ':'} {_clause(firing[0])}"
    elif "reason" in told:
        head = f"{phase}: {one_line(str(told['reason']))}"
    else:
        head = f"{phase}, and nothing is wrong" if phase == "running" else phase
    lines = [paint(line, "bad" if firing or phase != "running" else "good") for line in textwrap.wrap(title + head, width)]
    for each in [*firing, *(each for each in findings if each not in firing)]:
        first, since = "" if each in firing[:1] else f"{_clause(each)}, ", f"since {_minute(each.get('since'))}"
        if "alert_at" in each:
            then = f", alert at {_minute(each['alert_at'])}"
        else:
            then = f". {one_line(str(each['do']))}" if "do" in each else ""
        words = f"{first}{since}{then}"
        wrapped = textwrap.wrap(words, width, initial_indent="  ", subsequent_indent="  ")
        lines += wrapped if each in firing else [paint(line, "quiet") for line in wrapped]
    return lines


def _clause(finding: Mapping[str, Any]) -> str:
    return one_line(": ".join(str(finding[part]) for part in ("what", "detail") if part in finding))


def _minute(moment: object) -> str:
    """A time of a status document, in this machine's time zone."""
    try:
        return datetime.fromisoformat(str(moment)).astimezone().strftime("%Y-%m-%d %H:%M")
    except (ValueError, OverflowError):
        return "–"


def _sparklines(history: Mapping[str, Any], width: int) -> list[str]:
    columns, rows, now = history["columns"], history["rows"], history["now"]
    if not rows:
        return ["no history yet"]
    times = [row[0] for row in rows] + [now["time"]]
    lines = [f"{'since ' + _clock(rows[0][0]):{width - 27}} {'lowest':>8} {'now':>8} {'highest':>8}"]
    for label, name in _CHARTS.items():
        column = columns.index(name) if name in columns else None
        values = [None if column is None else row[column] for row in rows] + [now.get(name)]
        known = [value for value in values if value is not None]
        if known:
            line = sparkline(values, times, width - 36, 3 * history["every_seconds"])
            figures = " ".join(f"{_figure(value):>8}" for value in (min(known), values[-1], max(known)))
            lines.append(f"{label:8}{line} {figures}")
    return lines


def sparkline(values: Sequence[float | None], times: Sequence[float], width: int, stands: float) -> str:
    """A bar for each span of time: the mean of its values, between the lowest and the highest, if these differ by a percent.

    A span without values repeats the last mean for `stands` seconds; after that it is blank.
    """
    first, span = times[0], max(times[-1] - times[0], 1e-9) / width
    spans: list[list[float]] = [[] for _ in range(width)]
    for value, moment in zip(values, times, strict=True):
        if value is not None:
            spans[max(0, min(width - 1, int((moment - first) / span)))].append(value)
    means: list[float | None] = []
    stood = 0.0
    for each in spans:
        stood = 0.0 if each else stood + span
        means.append(sum(each) / len(each) if each else means[-1] if means and stood <= stands else None)
    known = [mean for mean in means if mean is not None]
    low, high = min(known), max(known)
    height = max(high - low, _LEAST_HEIGHT * max(abs(low), abs(high))) or 1.0
    return "".join(" " if mean is None else _BARS[round((mean - low) / height * (len(_BARS) - 1))] for mean in means)


def _checkpoint_lines(told: Mapping[str, Any], width: int) -> list[str]:
    found = told["checkpoints"]
    if not found:
        return ["no checkpoints yet"]
    lines = [f"{'checkpoint':15} {'gate':12} {'RMSE':>7} {'PLCC':>8} {'pairs':>6}  SHA-256"]
    for each in found[:_SHOWN_CHECKPOINTS]:
        name, marks = each["name"], ", ".join(mark for mark in ("latest", "stable") if told[mark] == each["name"])
        figures = f"{_figure(each.get('rmse')):>7} {_figure(each.get('plcc')):>8} {each.get('held_out', '–'):>6}"
        line = f"{name:15} {each.get('gate', '–'):12} {figures}  {each.get('sha256', '–')[:10]:10}  {marks}"
        lines.append(one_line(line).rstrip()[:width])
    if len(found) > _SHOWN_CHECKPOINTS:
        lines.append(f"and {len(found) - _SHOWN_CHECKPOINTS} older")
    return lines


def _figure(value: float | None) -> str:
    """A figure in at most eight characters. What is nearly 1 is not shown as 1."""
    if value is None:
        return "–"
    if 0.999 < value < 1:
        return f"{min(value, 0.999999):.6f}"
    return f"{value:.5g}" if value == 0 or 1e-3 <= abs(value) < 1e5 else f"{value:.1e}"


def _clock(seconds: float) -> str:
    return datetime.fromtimestamp(seconds).strftime("%H:%M:%S")


_WATCHED = (
    "feature_drift", "drifting_feature", "shifted_features", "shifted", "outliers",
    "unusual_features", "divergences", "learning_rate_share", "shifts",
    "pairs", "rejected",
)  # fmt: skip
_IN_WORDS = {  # name in the document: label, unit, and the factor that converts the value to this unit
    "current_samples": ("pairs in the journal", "", 1),
    "last_checkpoint_time": ("last checkpoint", "", 1),
    "model_version": ("last model", "", 1),
    "host": ("host", "", 1),
    "started": ("running since", "", 1),
    "accepting": ("accepts pairs", "", 1),
    "degraded": ("damaged files", "", 1),
    "damage": ("damage, by kind of file", "", 1),
    "base_model_refused": ("refused base model", "", 1),
    "log_dropped": ("log lines dropped", "", 1),
    "outliers": ("outliers, not trained on", "pairs", 1),
    "unusual_features": ("unusual features", "", 1),
    "divergences": ("weights diverged", "times, and went back to earlier ones", 1),
    "shifts": ("scores changed meaning", "times", 1),
    "learning_rate_share": ("learning rate", "of what is set", 1),
    "tenants": ("heads of tenants", "", 1),
    "tenant_pairs": ("pairs of tenants", "", 1),
    "refits": ("fits to replayed pairs", "", 1),
    "checkpoint_directory_lost": ("directory disappeared", "times", 1),
    "latest_version": ("latest.onnx is", "", 1),
    "stable_version": ("stable.onnx is", "", 1),
    "last_checkpoint_gate": ("verdict of the gate", "", 1),
    "last_checkpoint_reason": ("why", "", 1),
    "step": ("gradient steps", "", 1),
    "loss": ("loss", "score points squared", 1),
    "prequential_rmse": ("RMSE, last 1000 pairs", "score points", 1),
    "prequential_winsorized_rmse": ("same, winsorized", "score points", 1),
    "prequential_constant_rmse": ("same, of a constant", "score points", 1),
    "prequential_plcc": ("PLCC, last 1000 pairs", "", 1),
    "feature_drift": ("feature drift", "standard deviations", 1),
    "drifting_feature": ("drifting most", "", 1),
    "feature_distance": ("largest shift", "Kolmogorov–Smirnov distance", 1),
    "shifted_features": ("shifted features", "", 1),
    "shifted": ("which", "", 1),
    "pairs": ("pairs since the start", "", 1),
    "replay_size": ("replay buffer", "pairs", 1),
    "replay_capacity": ("room for", "pairs", 1),
    "replay_evictions": ("replay evictions", "pairs", 1),
    "held_out_size": ("held out", "pairs", 1),
    "held_out_capacity": ("room for", "pairs", 1),
    "checkpoints": ("checkpoints", "", 1),
    "checkpoint_failures": ("failed checkpoints", "", 1),
    "rollbacks": ("stable taken back", "times", 1),
    "rolled_back": ("last taken back", "", 1),
    "journal_bytes": ("journal", "MB", 1e-6),
    "disk_free_bytes": ("room on its disk", "MB", 1e-6),
    "step_seconds": ("time per step", "µs", 1e6),
    "n_features": ("features per pair", "", 1),
    "target": ("score", "", 1),
    "rejected": ("rejected, by reason", "", 1),
}


def status_for_people(document: Mapping[str, Any], width: int = 80, paint: Paint = plain) -> str:
    """A status document for people: what is wrong, then all figures."""
    figures = {name: value for name, value in document.items() if name not in ("phase", "findings")}
    return "\n".join([*verdict(document, width, paint), "", format_status(figures, width)])


def format_status(document: Mapping[str, Any], width: int = 80) -> str:
    """Figures in two columns, names and values, in lines of at most `width` characters."""
    rows = []
    for name, value in document.items():
        label, unit, scale = _IN_WORDS.get(name, (one_line(name).replace("_", " ")[:24], "", 1))
        scaled = value * scale if scale != 1 and isinstance(value, int | float) else value
        rows.append((label, f"{_in_words(scaled)} {unit}".strip() or "–"))
    column = max((len(label) for label, _ in rows), default=0) + 2
    return "\n".join(
        textwrap.fill(value, width, initial_indent=f"{label:{column}}", subsequent_indent=" " * column) for label, value in rows
    )


def _in_words(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return f"{value:,.0f}" if 1e4 <= abs(value) < 1e9 else _figure(value) if 0.999 < value < 1 else f"{value:.4g}"
    if isinstance(value, list):
        return ", ".join(map(_in_words, value))
    if isinstance(value, Mapping):
        return ", ".join(f"{one_line(name).replace('_', ' ')} {_in_words(each)}" for name, each in value.items())
    return one_line(str(value))
