"""Every setting of `serve`, once: name, environment variable, Helm key, default, what is allowed, help.

The command line's options, the Helm chart and the README's table are checked against this table by tests.
"""

from __future__ import annotations

import difflib
import math
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast

if TYPE_CHECKING:
    from onnx_builder.network import ActivationName
    from sidecar.models.base_model import ExportIo
    from sidecar.models.json_scaling import BaseScaler

TENANT_PATTERN = r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}"
TENANT_ALLOWED = "1 to 64 letters, digits, dots, underscores and hyphens, the first a letter or a digit"
"""What the name of a tenant may be, which names a directory, too."""
MOST_TENANTS = 256
Fsync = Literal["always", "everysec", "never"]
LogFormat = Literal["text", "json"]


class SettingsError(ValueError):
    """A value that is not allowed; the message names the variable, the value and what is allowed."""


@dataclass(frozen=True)
class Kind:
    """How a setting is read from text. allowed: what may be given, in words; type: the same in one word, for `--help`."""

    parse: Callable[[str], Any]
    allowed: str
    type: str


def whole(low: int, high: float = math.inf) -> Kind:
    """A whole number from low to high."""

    def parse(text: str) -> int:
        value = int(text)
        if not low <= value <= high:
            raise ValueError
        return value

    return Kind(parse, f"a whole number from {low}" + (f" to {high:.0f}" if high < math.inf else ""), "INTEGER")


def number(low: float, high: float = math.inf, *, over: bool = False, under: bool = False) -> Kind:
    """A finite number from low to high; over, under: the bound itself is not allowed."""

    def parse(text: str) -> float:
        value = float(text)
        if (
            not math.isfinite(value)
            or not (low < value if over else low <= value)
            or not (value < high if under else value <= high)
        ):
            raise ValueError
        return value

    upper = "" if high == math.inf else f" and {'below' if under else 'at most'} {high:g}"
    lower = "" if low == -math.inf else f" {'above' if over else 'of at least'} {low:g}"
    return Kind(parse, f"a finite number{lower}{upper}", "NUMBER")


_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86400}


def duration(unit: Literal["s", "d"], *, over: bool = False) -> Kind:
    """A time of at least 0 in seconds or days: a plain number of these, or a number with a unit of its own."""
    plain = number(0, over=over)

    def parse(text: str) -> float:
        found = re.fullmatch(r"([0-9]+(?:\.[0-9]+)?)([smhd])", text)
        return float(plain.parse(str(float(found[1]) * _SECONDS[found[2]] / _SECONDS[unit]) if found else text))

    named = {"s": "seconds", "d": "days"}[unit]
    return Kind(parse, f"{plain.allowed}, in {named} or with a unit, such as 30s, 10m, 12h or 90d", "DURATION")


_POWERS = {"K": 1, "M": 2, "G": 3, "T": 4}


def size() -> Kind:
    """A number of bytes: a plain one, or one with a decimal (10GB) or binary unit (10GiB, or 10Gi as in Kubernetes)."""
    plain = whole(0)

    def parse(text: str) -> int:
        found = re.fullmatch(r"([0-9]+(?:\.[0-9]+)?)([KMGT])(i?)B?", text)
        if found:
            return round(float(found[1]) * (1024.0 if found[3] else 1000.0) ** _POWERS[found[2]])
        return int(plain.parse(text.removesuffix("B")))

    return Kind(parse, f"{plain.allowed}, in bytes or with a unit, such as 512MiB, 10GiB or 10GB", "SIZE")


def one_of(*names: str) -> Kind:
    def parse(text: str) -> str:
        if text not in names:
            raise ValueError
        return text

    return Kind(parse, f"one of {', '.join(names)}", "|".join(names))


def _mode(text: str) -> int:
    value = int(text, 8)
    if not 0 <= value <= 0o777:
        raise ValueError
    return value


def _path(text: str) -> Path:
    if not text or "\0" in text:
        raise ValueError
    return Path(text)


def _names(text: str) -> tuple[str, ...]:
    names = tuple(name.strip() for name in text.split(","))
    if not all(names) or len(set(names)) != len(names):
        raise ValueError
    return names


def _tenants(text: str) -> tuple[str, ...]:
    names = _names(text)
    if names != ("*",) and not (len(names) <= MOST_TENANTS and all(re.fullmatch(TENANT_PATTERN, name) for name in names)):
        raise ValueError
    return names


SCORE = number(-3.4e38, 3.4e38)  # float32 goes no further
FLAG = Kind(lambda text: {"0": False, "1": True, "false": False, "true": True}[text.lower()], "0 or 1", "0|1")
PATH = Kind(_path, "a path", "PATH")
NAMES = Kind(_names, "names that differ, separated by commas", "NAMES")
TENANTS = Kind(_tenants, f"*, or up to {MOST_TENANTS} names of {TENANT_ALLOWED}, separated by commas", "NAMES|*")
TEXT = Kind(str, "text", "TEXT")
MODE = Kind(_mode, "an octal file mode such as 0600", "MODE")


def setting(default: Any, env: str, helm: str | None, kind: Kind, help: str, **more: Any) -> Any:  # noqa: A002
    return field(default=default, metadata={"env": env, "helm": helm, "kind": kind, "help": help, **more})


@dataclass(frozen=True)
class Settings:
    """The settings of a sidecar. What is None is worked out from others."""

    socket: Path = setting(Path("/tmp/vmafx-sidecar.sock"), "VMAFX_SIDECAR_SOCKET", None, PATH, "Path of the Unix socket.")
    socket_mode: int = setting(0o600, "VMAFX_SIDECAR_SOCKET_MODE", "socketMode", MODE, "File mode of the socket.")
    base_model: Path = setting(
        Path("/mnt/vmafx-models/base/model.onnx"), "VMAFX_BASE_MODEL_PATH", "baseModelPath", PATH,
        "ONNX model or PyTorch state-dict to fine-tune. If the file does not exist, training starts from a new model.",
    )  # fmt: skip
    follow_base: bool = setting(
        False, "VMAFX_SIDECAR_FOLLOW_BASE", "followBase", FLAG,
        "1: a changed file at the base model's path is followed without a restart.",
    )  # fmt: skip
    base_scaler: BaseScaler = setting(
        "none", "VMAFX_SIDECAR_BASE_SCALER", "baseScaler", one_of("none", "json"),
        "json: apply feature_mean and feature_std from the JSON beside the base model.",
    )  # fmt: skip
    export_io: ExportIo = setting(
        "canonical", "VMAFX_SIDECAR_EXPORT_IO", "exportIo", one_of("canonical", "base"),
        "base: checkpoints keep the base model's inputs and output.",
    )  # fmt: skip
    hidden: int = setting(64, "VMAFX_SIDECAR_HIDDEN", "hidden", whole(1, 65536), "Width of the hidden layer of a new model.")
    activation: ActivationName = setting(
        "relu", "VMAFX_SIDECAR_ACTIVATION", "activation", one_of("relu", "leaky_relu", "tanh", "gelu"),
        "Activation of a new model, and of a PyTorch state-dict, which does not name its own.",
    )  # fmt: skip
    checkpoint_dir: Path = setting(
        Path("/mnt/vmafx-models/online"),
        "VMAFX_SIDECAR_CHECKPOINT_DIR",
        "checkpointDir",
        PATH,
        "Directory for versioned checkpoints.",
    )
    state_dir: Path | None = setting(
        None,
        "VMAFX_SIDECAR_STATE_DIR",
        "stateDir",
        PATH,
        "Directory for the journal and snapshots.",
        otherwise="<checkpoint dir>/state",
    )
    replay_capacity: int = setting(
        10_000,
        "VMAFX_SIDECAR_REPLAY_CAPACITY",
        "replayBufferSize",
        whole(1, 10_000_000),
        "Capacity of the replay buffer, in pairs.",
    )
    batch_size: int = setting(32, "VMAFX_SIDECAR_BATCH_SIZE", "batchSize", whole(1, 65536), "Pairs in each gradient step.")
    replay_mix: float = setting(
        0.5, "VMAFX_SIDECAR_REPLAY_MIX", "replayMixRatio", number(0, 1, under=True),
        "Share of each batch that is drawn from the replay buffer.",
    )  # fmt: skip
    replay_policy: Literal["ring", "balanced"] = setting(
        "balanced", "VMAFX_SIDECAR_REPLAY_POLICY", "replayPolicy", one_of("ring", "balanced"),
        "ring: the oldest pair leaves a full replay buffer; balanced: the oldest of the scores that it has most of.",
    )  # fmt: skip
    learning_rate: float = setting(
        1e-4, "VMAFX_SIDECAR_LR", "learningRate", number(0, 0.1, over=True), "Learning rate.", also="--lr", steady=1e-3
    )
    loss: Literal["huber", "squared"] = setting(
        "huber",
        "VMAFX_SIDECAR_LOSS",
        "loss",
        one_of("huber", "squared"),
        "huber: an error far beyond the usual ones pulls no harder than a usual one, so that wrong scores do little harm.",
    )
    optimizer: Literal["sgd", "adam"] = setting(
        "sgd", "VMAFX_SIDECAR_OPTIMIZER", "optimizer", one_of("sgd", "adam"), "SGD with momentum, or Adam."
    )
    momentum: float = setting(0.9, "VMAFX_SIDECAR_MOMENTUM", "momentum", number(0, 0.9999), "Momentum of SGD.", steady=0.99)
    weight_decay: float = setting(
        1e-5, "VMAFX_SIDECAR_WEIGHT_DECAY", "weightDecay", number(0, 0.1), "L2 regularisation strength.", steady=0.01
    )
    max_grad_norm: float = setting(
        1.0,
        "VMAFX_SIDECAR_MAX_GRAD_NORM",
        "maxGradNorm",
        number(0, over=True),
        "Gradients with a larger norm are scaled down to this.",
    )
    warmup_steps: int = setting(
        100,
        "VMAFX_SIDECAR_WARMUP_STEPS",
        "warmupSteps",
        whole(0),
        "Steps over which the learning rate rises to its full value.",
    )
    steps_per_batch: int = setting(
        4, "VMAFX_SIDECAR_STEPS_PER_BATCH", "stepsPerBatch", whole(1, 1024), "Gradient steps for each group of new pairs."
    )
    ema_decay: float = setting(
        0.999,
        "VMAFX_SIDECAR_EMA_DECAY",
        "emaDecay",
        number(0, 1, under=True),
        "Decay β of the moving average of the weights (Polyak averaging).",
    )
    ema_warmup: bool = setting(
        True, "VMAFX_SIDECAR_EMA_WARMUP", "emaWarmup", FLAG, "1: β_t = min(β, (1+t)/(10+t)); 0: β from the first step."
    )
    checkpoint_interval: float = setting(
        600.0,
        "VMAFX_SIDECAR_CKPT_INTERVAL_S",
        "checkpointIntervalSeconds",
        duration("s"),
        "Minimum seconds between checkpoints.",
    )
    min_samples: int = setting(
        1000,
        "VMAFX_SIDECAR_MIN_SAMPLES_CKPT",
        "minSamplesPerCheckpoint",
        whole(1),
        "Minimum number of new pairs for a checkpoint.",
    )
    keep_checkpoints: int = setting(
        20,
        "VMAFX_SIDECAR_KEEP_CHECKPOINTS",
        "keepCheckpoints",
        whole(1),
        "Checkpoints to keep. Older ones are deleted, except the stable one.",
    )
    n_features: int | None = setting(
        None, "VMAFX_SIDECAR_N_FEATURES", "nFeatures", whole(1, 65536), "Length of the feature vector.",
        otherwise="the state's, else the base model's, else 80",
    )  # fmt: skip
    features: tuple[str, ...] | None = setting(
        None, "VMAFX_SIDECAR_FEATURES", "features", NAMES, "Names of the features in their order, comma-separated.",
        otherwise="the state's, else those in the base model's JSON, else none",
    )  # fmt: skip
    target: str | None = setting(
        None, "VMAFX_SIDECAR_TARGET", "target", TEXT,
        "What true_score is, such as vmaf_v0.6.1; a pair that names another target is refused.",
        otherwise="the base model's, else any",
    )  # fmt: skip
    score_min: float = setting(0.0, "VMAFX_SIDECAR_SCORE_MIN", "scoreMin", SCORE, "Lowest true_score that is accepted.")
    score_max: float = setting(100.0, "VMAFX_SIDECAR_SCORE_MAX", "scoreMax", SCORE, "Highest true_score that is accepted.")
    holdout_fraction: float = setting(
        0.05, "VMAFX_SIDECAR_HOLDOUT_FRACTION", "holdoutFraction", number(0, 1, under=True),
        "Share of pairs that never train, so that the gate can judge on them.", also="--holdout",
    )  # fmt: skip
    stability_plcc_delta: float = setting(
        0.005, "VMAFX_SIDECAR_STABILITY_PLCC_DELTA", "stabilityPlccDelta", number(0, 2),
        "How far the PLCC of a stable checkpoint may be below the reference.",
    )  # fmt: skip
    stability_rmse_ratio: float = setting(
        1.1, "VMAFX_SIDECAR_STABILITY_RMSE_RATIO", "stabilityRmseRatio", number(0, over=True),
        "Largest ratio of a stable checkpoint's RMSE to the reference's.",
    )  # fmt: skip
    rollback_threshold: float = setting(
        0.05, "VMAFX_SIDECAR_ROLLBACK_THRESHOLD", "rollbackThreshold", number(0),
        "Share by which a stable checkpoint's error may be above its predecessor's on later pairs; a worse one is taken back. "
        "0: never.",
    )  # fmt: skip
    tenants: tuple[str, ...] | None = setting(
        None, "VMAFX_SIDECAR_TENANTS", "tenants", TENANTS,
        "Tenants that get heads of their own: their names, comma-separated, or * for the first 256 that come.",
        otherwise="none",
    )  # fmt: skip
    tenant_rank: int = setting(
        0, "VMAFX_SIDECAR_TENANT_RANK", "tenantRank", whole(0, 64),
        "Rank of each tenant's adapter on the hidden layer; 0: an output layer of its own and nothing else.",
    )  # fmt: skip
    tenant_share: float = setting(
        0.5, "VMAFX_SIDECAR_TENANT_SHARE", "tenantShare", number(0, 1),
        "Share of any thousand steps of the shared weights that one tenant may drive while others send pairs, too.",
    )  # fmt: skip
    tenant_labels: bool = setting(
        False, "VMAFX_SIDECAR_TENANT_LABELS", "tenantLabels", FLAG,
        "1: metrics of each tenant, with its name as a label.",
    )  # fmt: skip
    snapshot_interval: float = setting(
        60.0, "VMAFX_SIDECAR_SNAPSHOT_INTERVAL_S", "snapshotIntervalSeconds", duration("s", over=True),
        "Seconds between snapshots, which limit how much a crash makes it retrain.",
    )  # fmt: skip
    journal_fsync: Fsync = setting(
        "everysec", "VMAFX_SIDECAR_JOURNAL_FSYNC", "journalFsync", one_of("always", "everysec", "never"),
        "When the journal is fsynced: after each write, every second, or when the system decides.",
    )  # fmt: skip
    journal_retention_days: float = setting(
        90.0, "VMAFX_SIDECAR_JOURNAL_RETENTION_DAYS", "journalRetentionDays", duration("d"),
        "Days after which recorded pairs are deleted; 0 keeps all.",
    )  # fmt: skip
    journal_max_bytes: int = setting(
        10_737_418_240, "VMAFX_SIDECAR_JOURNAL_MAX_BYTES", "journalMaxBytes", size(),
        "Size of the journal in bytes above which its oldest pairs are deleted; 0: no limit.",
    )  # fmt: skip
    http: str = setting(
        "127.0.0.1:9091",
        "VMAFX_SIDECAR_HTTP",
        "http",
        TEXT,
        "Address of the live page, /status, /metrics and the probes; empty: no HTTP.",
    )
    http_models: bool = setting(
        False, "VMAFX_SIDECAR_HTTP_MODELS", "httpModels", FLAG,
        "1: checkpoints can be fetched over HTTP, at /models/stable.onnx and its like.",
    )  # fmt: skip
    seed: int = setting(0, "VMAFX_SIDECAR_SEED", "seed", whole(0), "Seed of every random choice.")
    cuda: bool = setting(False, "VMAFX_SIDECAR_CUDA", "cuda", FLAG, "1: run the steps on an NVIDIA GPU.")
    log_format: LogFormat = setting(
        "text", "VMAFX_SIDECAR_LOG_FORMAT", "logFormat", one_of("text", "json"), "Format of the log on stderr."
    )
    log_level: str = setting(
        "info",
        "VMAFX_SIDECAR_LOG_LEVEL",
        "logLevel",
        one_of("debug", "info", "warning", "error"),
        "Minimum log level.",
    )

    def __post_init__(self) -> None:
        if not self.score_min < self.score_max:
            raise SettingsError(
                f"{env_of('score_min')}={self.score_min:g}: expected a number under {env_of('score_max')}={self.score_max:g}"
            )
        if self.features and self.n_features not in (None, len(self.features)):
            expected = f"expected {len(self.features)}, as many as {env_of('features')} names"
            raise SettingsError(f"{env_of('n_features')}={self.n_features}: {expected}")
        if os.path.abspath(self.state) == os.path.abspath(self.checkpoint_dir):  # each has a lock of its own
            expected = f"expected another directory than {env_of('checkpoint_dir')}={self.checkpoint_dir}, or one in it"
            raise SettingsError(f"{env_of('state_dir')}={self.state}: {expected}")

    @property
    def state(self) -> Path:
        """The state directory."""
        return self.state_dir or self.checkpoint_dir / "state"


def env_of(name: str) -> str:
    """The environment variable of a setting."""
    return cast(str, next(each.metadata["env"] for each in fields(Settings) if each.name == name))


def option_of(name: str) -> str:
    """The command-line option of a setting; some have another one besides (`also`)."""
    return "--" + name.replace("_", "-")


SECTIONS = {
    "Socket, directories and HTTP": "socket socket_mode checkpoint_dir state_dir http http_models",
    "Model": "base_model follow_base base_scaler export_io hidden activation n_features features target score_min score_max",
    "Training": "learning_rate loss optimizer momentum weight_decay max_grad_norm warmup_steps steps_per_batch batch_size "
    "replay_capacity replay_policy replay_mix ema_decay ema_warmup seed cuda",
    "Checkpoints and the gate": "checkpoint_interval min_samples keep_checkpoints holdout_fraction stability_plcc_delta "
    "stability_rmse_ratio rollback_threshold",
    "Tenants": "tenants tenant_rank tenant_share tenant_labels",
    "Journal": "journal_fsync journal_retention_days journal_max_bytes snapshot_interval",
    "Log": "log_format log_level",
}
"""The names of all settings, as `--help` and the docs group them."""


def default_text(name: str) -> str:
    """The default of a setting as a person would write it."""
    about = next(each for each in fields(Settings) if each.name == name)
    value = about.default
    if "otherwise" in about.metadata:
        return str(about.metadata["otherwise"])
    if name == "socket_mode":
        return f"{value:04o}"
    return str(int(value)) if isinstance(value, bool) else f"{value:g}" if isinstance(value, float) else str(value)


_OF_A_SERVICE = re.compile(r"VMAFX_SIDECAR_(SERVICE_HOST|SERVICE_PORT.*|PORT(_.*)?)")


def unknown_variables(environment: Mapping[str, str]) -> list[str]:
    """In words, each variable that is named like a setting and is none, with the setting whose name is nearest.

    Kubernetes makes such variables for a Service that is called vmafx-sidecar; these are left out.
    """
    known = [each.metadata["env"] for each in fields(Settings)]
    unknown = sorted(name for name in environment if name.startswith("VMAFX_SIDECAR_") and name not in known)
    nearest = {name: difflib.get_close_matches(name, known, 1, 0.0)[0] for name in unknown if not _OF_A_SERVICE.fullmatch(name)}
    return [f"{name} is no setting and has no effect; the nearest is {other}" for name, other in nearest.items()]


def unsteady(settings: Settings) -> list[str]:
    """In words, each setting that is higher than what training has been seen to be steady with."""
    return [
        f"{each.metadata['env']}={getattr(settings, each.name):g}: training is steady up to {each.metadata['steady']:g}; "
        "with more the weights may go back to earlier ones again and again"
        for each in fields(Settings)
        if "steady" in each.metadata and getattr(settings, each.name) > each.metadata["steady"]
    ]


def read_settings(options: Mapping[str, str | None], environment: Mapping[str, str]) -> Settings:
    """Settings from texts: an option beats the environment, the environment beats the default.

    options: by name, None where not given. An environment variable that is empty counts as not set, except where text is
    wanted. Raises SettingsError naming the variable or option, the value and what is allowed.
    """
    values: dict[str, Any] = {}
    for each in fields(Settings):
        kind: Kind = each.metadata["kind"]
        source, text = option_of(each.name), options.get(each.name)
        if text is None:
            source, text = each.metadata["env"], environment.get(each.metadata["env"])
            if text is None or (not text and kind is not TEXT):
                continue
        try:
            values[each.name] = kind.parse(text)
        except (ValueError, KeyError):
            raise SettingsError(f"{source}={text!r}: expected {kind.allowed}") from None
    return Settings(**values)
