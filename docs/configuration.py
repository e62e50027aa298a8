"""Prints docs/configuration.md from the table of settings: `python docs/configuration.py > docs/configuration.md`."""

from __future__ import annotations

from dataclasses import Field, fields
from typing import Any, NamedTuple

from sidecar.settings import Settings, option_of

INTRODUCTION = """\
# Configuration of `serve`

An option beats its environment variable, which beats the default. A bad value stops the start with exit code 2 and one line
that names the variable, the value and what is allowed. Helm keys stand under `sidecar.trainer`.

This page is made by `docs/configuration.py`; a test holds it to the program.
"""


class Section(NamedTuple):
    """names: of settings, in the order in which they are shown."""

    title: str
    text: str
    names: str


SECTIONS = [
    Section(
        "Where things are",
        """\
The sidecar writes to the two directories and the socket, and to nothing else. Each sidecar has a state directory of its own;
several may share a checkpoint directory.
""",
        "socket socket_mode checkpoint_dir state_dir http",
    ),
    Section(
        "What is trained",
        """\
Where nothing is at the base model's path, a fresh head is fitted to the first 256 pairs by the offline recipe, and trained
from there. A base model that cannot be used does not stop the sidecar: it records, in phase `failed`.
""",
        "base_model base_scaler export_io hidden activation n_features score_min score_max",
    ),
    Section(
        "How it is trained",
        """\
`learningRate` is in units of its own: features and scores are brought to a deviation of about 1, and 1e-4 is a step of 0.01
there; gradients are clipped in these units too. Warm-up starts at a share of the rate that grows with the base model's error
on its first pairs: all of it from a tenth of the range of scores on. For who has the processor time,
`VMAFX_SIDECAR_STEPS_PER_BATCH=16`, `VMAFX_SIDECAR_LR=0.0002` and `VMAFX_SIDECAR_WARMUP_STEPS=400` learn faster (figures:
[benchmarks/README.md](../benchmarks/README.md), "recommended"). Changed settings hold from the next pair after a restart on.
""",
        "learning_rate optimizer momentum weight_decay max_grad_norm warmup_steps steps_per_batch batch_size replay_capacity "
        "replay_mix ema_decay ema_warmup seed cuda",
    ),
    Section(
        "Checkpoints and the gate",
        """\
A checkpoint appears once both the interval and the number of new pairs are reached, on SIGUSR1, and at shutdown where
anything was trained since the last. It is `stable` if, on the held-out pairs and on the anchor, its PLCC is at most the delta
under the highest and its RMSE at most the ratio times the lowest of the present stable checkpoint's and the base model's.
""",
        "checkpoint_interval min_samples keep_checkpoints holdout_fraction stability_plcc_delta stability_rmse_ratio",
    ),
    Section(
        "What is kept of the pairs",
        """\
Each answered pair outlives the death of the process. Of a power cut `journalFsync` decides: with `always`, each outlives it;
with `everysec`, those up to the last fsync, one of which is begun each second; with `never`, those that the system has written.
""",
        "journal_fsync journal_retention_days journal_max_bytes snapshot_interval",
    ),
    Section("The log", "A line an event, on stderr.\n", "log_format log_level"),
]


def page() -> str:
    """The whole page. Raises KeyError where a section names a setting that there is not, ValueError where one is in none."""
    settings = {each.name: each for each in fields(Settings)}
    left = settings.keys() - {name for section in SECTIONS for name in section.names.split()}
    if left:
        raise ValueError(f"in no section: {', '.join(sorted(left))}")
    parts = [INTRODUCTION]
    for section in SECTIONS:
        rows = ["| variable | option | Helm key | default | allowed | meaning |", "|---|---|---|---|---|---|"]
        rows += [_row(settings[name]) for name in section.names.split()]
        parts += [f"## {section.title}\n", section.text, "\n".join(rows) + "\n"]
    return "\n".join(parts)


def _row(setting: Field[Any]) -> str:
    about = setting.metadata
    helm = f"`{about['helm']}`" if about["helm"] else "–"
    cells = [f"`{about['env']}`", f"`{option_of(setting.name)}`", helm, _default(setting), about["kind"].allowed, about["help"]]
    return f"| {' | '.join(cells)} |"


def _default(setting: Field[Any]) -> str:
    """As a person would write it."""
    value = setting.default
    if "otherwise" in setting.metadata:
        text = str(setting.metadata["otherwise"])
        return f"`{text}`" if "<" in text else text  # which would be a tag
    if setting.name == "socket_mode":
        return f"`{value:04o}`"
    return f"`{int(value)}`" if isinstance(value, bool) else f"`{value:g}`" if isinstance(value, float) else f"`{value}`"


if __name__ == "__main__":
    print(page(), end="")
