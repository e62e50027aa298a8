"""What a running sidecar reports about itself: one immutable value, made by the training thread, read by the HTTP threads."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import TYPE_CHECKING, Literal, NamedTuple

if TYPE_CHECKING:  # numpy takes longer to load than `probe` to run
    from sidecar.learning.drift.two_samples import Comparison

Phase = Literal["initializing", "running", "paused", "failed"]
REASON_CHARACTERS = 500
_NONE: Mapping[str, int] = MappingProxyType({})


class Finding(NamedTuple):
    """Something that is wrong.

    figure: the field of a `Status` that it is about. what: in words, a clause; detail: more, of what only this sidecar knows,
    or empty; do: what it means and what to do. since: when it began; firing: it has lasted long enough for an alert, which is
    at `alert_at`. Both in seconds since the epoch.
    """

    alert: str
    figure: str
    severity: Literal["critical", "warning", "info"]
    what: str
    detail: str
    do: str
    since: float
    alert_at: float
    firing: bool


class TenantFigures(NamedTuple):
    """A tenant. pairs: how many have trained its head; used: whether that is in use.

    rmse_of_shared, rmse: of the shared weights and of its head on its newest pairs, each predicted before it trained, in score
    points.
    """

    name: str
    pairs: int
    rmse_of_shared: float
    rmse: float
    used: bool


@dataclass(frozen=True)
class Status:
    """The state at one moment.

    phase: `initializing` while recovering or collecting the first pairs of a new model; `paused` while the journal cannot be
    written; `failed` if the base model cannot be used (pairs are recorded but not trained on). host: who it is, in Kubernetes
    the pod. reason: why it is paused or failed, else empty. accepting: the socket is bound. progress: `time.monotonic()` of the
    event loop's last turn.

    Counts are those of this process; positions, steps and versions are those of the state. loss: mean squared error of the last
    group of new pairs before its first step, in score points squared. prequential_*: on the last 1000 pairs, each predicted
    before it was trained on; rmse in score points; constant_rmse: that of the best constant prediction; plcc: 0 if all
    predictions are the same, None if all scores are. findings: what is wrong, the worst first. feature_drift: the largest
    moving mean of a standardised feature, in standard deviations; drifting_feature: which. feature_distance: the largest
    Kolmogorov–Smirnov distance of a feature's latest values from the first ones; shifted_features: how many are too far to be
    chance, shifted: which, in words; comparison: all of that. outliers: pairs of the state that were left out of training;
    unusual_features: in what, in words. divergences: how often the weights went back; rate_share: what the learning rate is
    multiplied by. shifts: how often earlier pairs were given up because scores had come to mean something else. refits: how
    many fits to the replay buffer took the place of the average, or did not. features: their names in the model's order, empty
    if they have none. target: what the scores are, empty if that is not known. step_seconds: mean time of the last steps,
    including all work on their pairs. None: no value yet.
    """

    phase: Phase = "initializing"
    findings: tuple[Finding, ...] = ()
    host: str = ""
    started: float | None = None  # seconds since the epoch
    reason: str = ""
    accepting: bool = False
    progress: float = 0.0
    n_features: int = 0
    features: tuple[str, ...] = ()
    target: str = ""
    position: int = 0
    step: int = 0
    pairs: Mapping[str, int] = field(default_factory=lambda: _NONE)  # accepted, held_out, duplicate, rejected
    rejected: Mapping[str, int] = field(default_factory=lambda: _NONE)  # by kind of error; bounded in number and length
    loss: float | None = None
    prequential_rmse: float | None = None
    prequential_winsorized_rmse: float | None = None
    prequential_constant_rmse: float | None = None
    prequential_plcc: float | None = None
    feature_drift: float | None = None
    drifting_feature: str = ""
    feature_distance: float | None = None
    shifted_features: int = 0
    shifted: str = ""
    comparison: Comparison | None = None
    step_seconds: float | None = None
    replay_size: int = 0
    replay_capacity: int = 0
    replay_evictions: int = 0
    held_out_size: int = 0
    held_out_capacity: int = 0
    connections: int = 0
    journal_bytes: int = 0
    disk_free_bytes: int | None = None  # of the disk that the state is on
    journal_errors: int = 0
    skipped_steps: int = 0
    outliers: int = 0
    unusual_features: str = ""
    divergences: int = 0
    rate_share: float = 1.0
    shifts: int = 0
    refits: Mapping[str, int] = field(default_factory=lambda: _NONE)  # adopted, rejected
    tenants: tuple[TenantFigures, ...] | None = None  # None where pairs have no tenants
    tenant_pairs: Mapping[str, int] = field(default_factory=lambda: _NONE)  # of the state, by what became of them
    degraded: tuple[str, ...] = ()  # what was damaged in the state directory
    damage: Mapping[str, int] = field(default_factory=lambda: _NONE)  # by kind of file
    log_dropped: int = 0
    base_models: Mapping[str, int] = field(default_factory=lambda: _NONE)  # that replaced the base: followed, refused
    base_refused: str = ""  # why the one that is there now is not followed
    checkpoint_directory_lost: int = 0  # how many times it was found removed or replaced
    version: int | None = None  # of the last checkpoint of this process; before that, the newest in the directory
    latest_version: int | None = None  # what the links name, whoever has published it
    stable_version: int | None = None
    checkpoint_time: float | None = None  # of that version, seconds since the epoch
    checkpoint_gate: str | None = None  # of the last one: stable, unstable, unverified, incompatible
    checkpoint_reason: str = ""  # why
    checkpoints: Mapping[str, int] = field(default_factory=lambda: _NONE)  # by gate
    rollbacks: int = 0
    rolled_back: str = ""  # the last checkpoint that was taken back, and why
    checkpoint_failures: Mapping[str, int] = field(default_factory=lambda: _NONE)  # by stage: build, parity, write, lock

    @property
    def degraded_files(self) -> int:
        """How many files were found damaged, and still lie there."""
        return len(self.degraded)

    @property
    def base_model_refused(self) -> bool:
        """Whether the base model that is there is not followed."""
        return bool(self.base_refused)

    @property
    def heads(self) -> Mapping[str, int]:
        """How many tenants' heads are in use and how many are not; nothing where there are no tenants."""
        if self.tenants is None:
            return _NONE
        used = sum(tenant.used for tenant in self.tenants)
        return {"used": used, "unused": len(self.tenants) - used}


def one_line(text: str) -> str:
    """Text of any origin, made fit for a terminal: printable, on one line, of bounded length."""
    line = "".join(each if each.isprintable() else " " for each in text[: REASON_CHARACTERS + 1])
    return line if len(line) <= REASON_CHARACTERS else line[:-2] + "…"
