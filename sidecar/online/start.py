"""Where a sidecar starts from: its base model, the state that is there, and what pairs are trained with from now on."""

from __future__ import annotations

import logging
import os
import time
from dataclasses import fields, replace
from pathlib import Path
from typing import NamedTuple

from onnx_builder.network import Clip, Network, NetworkError
from sidecar.checkpoints.directory import LATEST, linked
from sidecar.checkpoints.judging.compatibility import score_range
from sidecar.features.names import NamesError, canonical, in_order, repeated
from sidecar.journal.run import Run, kernel
from sidecar.journal.segments import is_before_blocks
from sidecar.learning.device.stacked import Device
from sidecar.learning.training_settings import TrainingSettings
from sidecar.models.base_model import BaseModel, load, require_features
from sidecar.models.description import DescriptionError, read_description
from sidecar.models.inputs import ModelInputs, inputs_of
from sidecar.models.pytorch.state_dict import Choices
from sidecar.online.recovery import newest_run
from sidecar.settings import Settings, SettingsError, env_of
from sidecar.state.base_models import base_path, digest_of, kept_base
from sidecar.state.directory import StateError, locked

_log = logging.getLogger(__name__)


class Start(NamedTuple):
    """base: what checkpoints are compared with, and take their form from; None for a fresh head, and where none can be used.

    begins_with: the network that pairs are trained from where that is new, None where the state goes on. failed: why no base
    model can be used, else empty.
    """

    base: BaseModel | None
    begins_with: Network | None
    run: Run
    failed: str


def where_to_start(settings: Settings, device: Device | None = None) -> Start:
    """The base model, and the run that pairs are trained under from now on.

    Where nothing is at the base's path, or it is a checkpoint of this very directory, the state goes on; where there is no
    state, a fresh head begins. A state of another number of features, or of a format before the first release, is moved aside.

    Raises StateError where the state cannot be used, or is another sidecar's; SettingsError if a feature is named twice.
    """
    if is_before_blocks(settings.state):
        _move_aside(settings.state, "old-format", "the state is of a format before the first release")
    last, base, failed = newest_run(settings.state), None, ""
    own, missing = _is_own(settings), _is_missing(settings.base_model)
    goes_on = last is not None and (own or missing)
    if missing and not (own and goes_on):
        what = "the state goes on" if goes_on else "a fresh head is fitted to the first pairs"
        _log.warning("%s=%s: nothing is there; %s", env_of("base_model"), settings.base_model, what)
    if not goes_on and (not missing or settings.base_model.is_symlink()):  # a link that leads nowhere is a mistake
        try:
            base = _load(settings)
        except ValueError as error:
            failed = str(error)
    if base is None and not goes_on and settings.export_io == "base" and not failed:
        failed = f"{env_of('export_io')}=base: needs an ONNX base model; there is none at {settings.base_model}"
    inputs = base.inputs if base else None
    named = tuple(map(canonical, settings.features or ()))
    if twice := repeated(named):
        raise SettingsError(f"{env_of('features')}={','.join(settings.features or ())}: {twice} is there more than once")
    features = named or (last.features if last else ()) or (inputs.names if inputs else ())
    n_features = settings.n_features or len(named) or (last.n_features if last else 0)
    n_features = n_features or (base.network.n_features if base else 80)
    features = features if len(features) == n_features else ()
    if base is not None and (why := _does_not_fit(base, n_features, features)):
        failed, base, inputs = why, None, None
    if last is not None and (last.n_features != n_features or (last.features and {*last.features} != {*features})):
        had = f"{last.n_features} features" + (f" ({', '.join(last.features)})" if last.features else "")
        wanted = f"{n_features}" + (f" ({', '.join(features)})" if features else "")
        _move_aside(settings.state, f"{last.n_features}-features", f"the state had {had}, {wanted} are set now")
        last, goes_on = None, False
    begins_with = base.network if base else None
    digest = digest_of(base.network) if base else (last.base if last and goes_on else None)
    ran_on = device.name if device else kernel()
    run = _run_of(settings, n_features, features, digest, inputs, last if goes_on else None, ran_on)
    if last is not None and goes_on:
        base = _base_of(settings, last)
        if base is None and settings.export_io == "base":
            failed = f"{env_of('export_io')}=base: neither a base model nor a checkpoint of this form is there any more"
    return Start(base, begins_with, run, failed)


def next_base(settings: Settings, last: Run, present: BaseModel | None) -> tuple[BaseModel, Run]:
    """The base model at its path now, and the run that begins with it, to follow the one that trains at present.

    last, present: that run and its base model. Raises ValueError that says why the new one cannot be used, or not without a
    restart: it takes other features or has other scores.
    """
    path = settings.base_model
    if _is_own(settings):
        raise NetworkError(f"base model {path} is a checkpoint of this very sidecar's directory")
    about = read_description(path) or {}
    base = _load(settings)
    digest, inputs = digest_of(base.network), base.inputs
    features = tuple(map(canonical, settings.features or ())) or last.features or inputs.names
    why = _does_not_fit(base, last.n_features, features)
    if not why and digest != last.base and (why := _other_use(settings, base, score_range(about), features, last, present)):
        why = f"base model {path}: {why}"
    if why:
        raise NetworkError(why)
    return base, _run_of(settings, last.n_features, features, digest, inputs, None, last.kernel)


def _other_use(
    settings: Settings,
    base: BaseModel,
    scores: tuple[float, float] | None,
    features: tuple[str, ...],
    last: Run,
    present: BaseModel | None,
) -> str:
    """Why a base model of the right width is fed, or gives scores, otherwise than the present one; empty if it does not."""
    order, end, wanted = base.inputs.names or features, base.network.steps[-1], (settings.score_min, settings.score_max)
    if scores is None and isinstance(end, Clip):
        scores = end.low, end.high
    if last.order and order != last.order:
        return f"its features are {', '.join(order)}, in another order than {', '.join(last.order)}"
    if scores is not None and scores != wanted:
        return f"its scores are from {scores[0]:g} to {scores[1]:g}, not from {wanted[0]:g} to {wanted[1]:g}"
    if not settings.target and last.target and base.inputs.target not in ("", last.target):
        return f"its scores are {base.inputs.target}, not {last.target}"
    if settings.export_io == "base" and present is not None and _ports(base) != _ports(present):
        return f"{env_of('export_io')}=base: its inputs and output are others than those of the present base model"
    return ""


def _is_own(settings: Settings) -> bool:
    """Whether the base model is a checkpoint of this very sidecar's directory."""
    return os.path.dirname(os.path.realpath(settings.base_model)) == os.path.realpath(settings.checkpoint_dir)


def _is_missing(path: Path) -> bool:
    try:
        return not path.exists()
    except OSError:  # who reads it says why that cannot be done
        return False


def _load(settings: Settings) -> BaseModel:
    """Raises NetworkError."""
    return load(
        settings.base_model,
        scaler=settings.base_scaler,
        export_io=settings.export_io,
        choices=Choices(otherwise=settings.activation),
    )


def _ports(base: BaseModel) -> tuple[object, ...]:
    return (base.declared.inputs, base.declared.output) if base.declared else ()


def _run_of(
    settings: Settings,
    n_features: int,
    features: tuple[str, ...],
    digest: str | None,
    inputs: ModelInputs | None,
    before: Run | None,
    kernel: str,
) -> Run:
    """digest, inputs: of the base model, None without one. before: the run whose features' order and target go on."""
    order = (inputs.names if inputs else ()) or (before.order if before else ()) or features
    block = inputs.block if inputs else before.encoder if before else None
    target = settings.target or (inputs.target if inputs else "") or (before.target if before else "")
    if inputs and inputs.target and target != inputs.target:
        _log.warning("base model %s was trained on %s; it is fine-tuned to %s", settings.base_model, inputs.target, target)
    return Run(
        n_features, _training_settings(settings), settings.holdout_fraction, digest, kernel,
        features=features, order=order, encoder=block, target=target,
    )  # fmt: skip


def _does_not_fit(base: BaseModel, n_features: int, features: tuple[str, ...]) -> str:
    """Why a base model cannot take these features, and what to set; empty if it can."""
    takes = base.network.n_features
    if takes != n_features:
        wanted = ",".join(base.inputs.names) or f"the names of {takes}"
        named = f" and {env_of('features')} to {wanted}, or leave them out" if features else ", or leave it out"
        return f"base model {base.path} takes {takes} features, not {n_features}: set {env_of('n_features')} to {takes}{named}"
    names = base.inputs.names
    if names and features and {*names} != {*features}:
        try:
            in_order(features, names)
        except NamesError as error:
            return f"base model {base.path} takes other features: {error}; set {env_of('features')} to {','.join(names)}"
    return ""


def _base_of(settings: Settings, last: Run) -> BaseModel | None:
    """The base model of a state that goes on without its file: as it was kept, or in the form of the newest checkpoint."""
    latest = linked(settings.checkpoint_dir, LATEST)
    as_published = settings.export_io == "base"
    path = base_path(settings.state, last.base) if last.base and not as_published else None
    if as_published and latest is not None:
        path = latest.model
    try:
        if path is not None and not as_published:
            kept_base(settings.state, last)  # its bytes are those of the run record
        scaler = settings.base_scaler if as_published else "none"
        base = load(path, scaler=scaler, export_io=settings.export_io) if path else None
        if base is None:
            return None
        require_features(base, last.n_features, str(settings.state))
        if latest is not None and not as_published:  # it was kept without its JSON
            base = replace(base, inputs=_published_inputs(latest.model, last))
        if base.inputs.names and last.order and base.inputs.names != last.order:
            raise NetworkError(f"{base.path} takes {', '.join(base.inputs.names)}, not the features of {settings.state}")
        return base
    except (OSError, ValueError) as error:
        _log.warning("%s", error)
        return None


def _published_inputs(checkpoint: Path, last: Run) -> ModelInputs:
    """What the JSON of a checkpoint says of its inputs; nothing if it cannot be read, or is of other features than a run."""
    try:
        inputs = inputs_of(read_description(checkpoint) or {}, [("features", last.n_features)])
    except DescriptionError:
        return ModelInputs()
    return inputs if inputs.names == last.order else ModelInputs()


def _move_aside(state: Path, what: str, why: str) -> None:
    aside = state.with_name(f"{state.name}.{what}-{time.strftime('%Y%m%dT%H%M%S')}")
    try:
        with locked(state):  # never that of a sidecar that runs
            state.rename(aside)
    except OSError as error:
        raise StateError(f"{state}: cannot be moved aside: {error.strerror or error}") from error
    _log.warning("%s: moved aside to %s; it begins anew", why, aside)


def _training_settings(settings: Settings) -> TrainingSettings:
    """All of these are settings of `serve`, under the same names."""
    return TrainingSettings(**{each.name: getattr(settings, each.name) for each in fields(TrainingSettings)})
