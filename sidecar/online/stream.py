"""`train-offline --stream`: trains the online learner on pairs in order, from a sidecar's journal or from files.

With a state directory it uses the runs that are recorded there, and makes the same bytes as the checkpoint that the sidecar
published at the same position. So a checkpoint can be audited.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from pathlib import Path

from sidecar.checkpoints.directory import check_writable
from sidecar.checkpoints.heads import changed_heads, publish_heads
from sidecar.checkpoints.judging.gate import Evidence
from sidecar.checkpoints.publishing import Published, Terms, publish_network
from sidecar.journal.run import ALGORITHM, Run
from sidecar.journal.segments import first_kept, journal_segments
from sidecar.learning.recipe import TrainingError
from sidecar.learning.training_settings import TrainingSettings
from sidecar.models.base_model import BaseModel, ExportIo, require_features
from sidecar.models.evidence import evidence
from sidecar.models.inputs import ModelInputs
from sidecar.online.learner import Learner
from sidecar.online.publication import PARITY_PAIRS, about_inputs
from sidecar.online.recovery import rebuild
from sidecar.pairs.recorded import read_columns, require_target
from sidecar.pairs.tables.choice import Columns
from sidecar.state.base_models import digest_of

_log = logging.getLogger(__name__)
_BLOCK_PAIRS = 256
HOLDOUT_FRACTION = 0.05


def train_stream(
    paths: Sequence[str | Path],
    output: Path,
    *,
    until: int | None = None,
    base: BaseModel | None = None,
    export_io: ExportIo = "canonical",
    holdout: float | None = None,
    settings: TrainingSettings | None = None,
    progress: Callable[[int], object] = lambda pairs: None,
    columns: Columns = Columns(),  # noqa: B008 (frozen)
) -> Published:
    """Train in stream order and publish the EMA weights as a checkpoint in `output`.

    paths: one state directory, or files of recorded pairs, to which base, holdout, settings (the online defaults) and columns
    apply.
    until: the last position to train on, by default the last one. progress: told how many more pairs were trained on.

    Raises JournalError or StateError if the journal does not have all that is needed, RecordedPairsError, NetworkError,
    CheckpointError, and TrainingError if there are too few pairs for a checkpoint.
    """
    check_writable(output)
    first = Path(paths[0])
    if len(paths) == 1 and first.is_dir() and journal_segments(first):
        if columns != Columns():
            raise TrainingError(f"{first}: its run records say which features it has; columns are chosen for files alone")
        learner = _from_journal(first, until, progress)
    else:
        share = HOLDOUT_FRACTION if holdout is None else holdout
        learner = _from_files(paths, until, base, share, settings or TrainingSettings(), progress, columns)
    trainer = learner.trainer
    if trainer.ema is None or not trainer.trained:
        raise TrainingError(f"{learner.position} pairs are too few for a checkpoint; a new model needs 256 to train on")
    run = learner.run
    held_out = learner.evidence()
    terms = Terms(output, run.settings.score_max - run.settings.score_min, base, export_io if base else "canonical")
    description = {
        "step": trainer.step,
        "pairs_seen": trainer.trained,
        **about_inputs(run),
        "settings": {**run.as_json()["settings"], "holdout": run.holdout_fraction},
        "journal": {"first": learner.first, "last": learner.position - 1},
        "data": [str(path) for path in paths],
    }
    real = trainer.replay.rows(newest=PARITY_PAIRS)[:, : run.n_features]
    judged = Evidence("held-out pairs", held_out[:, :-2], held_out[:, -2], group=held_out[:, -1])
    published = publish_network(trainer.network(trainer.ema), terms, [judged], real, description)
    if learner.tenants is not None:
        heads = changed_heads(learner.tenants.models(trainer), output)
        publish_heads(heads, terms, published.gate, real, description)
    return published


def _from_journal(state_directory: Path, until: int | None, progress: Callable[[int], object]) -> Learner:
    first = first_kept(state_directory)
    if first:
        gone = f"retention has deleted the pairs before position {first}"
        raise TrainingError(f"{state_directory}: {gone}; training on them cannot be repeated")

    def check(position: int, run: Run) -> None:
        if run.algorithm != ALGORITHM:
            trained = f"pairs from position {position} on were trained by algorithm {run.algorithm}"
            raise TrainingError(
                f"{state_directory}: {trained}; this program knows algorithm {ALGORITHM}: use the one that trained"
            )

        if run.on_gpu:
            _log.warning("pairs from position %d on were trained on %s; here the last bits may differ", position, run.kernel)

    learner = rebuild(state_directory, None, until=until, progress=progress, on_run=check)
    if learner is None:
        raise TrainingError(f"{state_directory}: no journal with a run in it; expected a sidecar's state directory")
    if until is not None and learner.position <= until:
        raise TrainingError(f"{state_directory}: its last position is {learner.position - 1}, but {until} was requested")
    return learner


def _from_files(
    paths: Sequence[str | Path],
    until: int | None,
    base: BaseModel | None,
    holdout: float,
    settings: TrainingSettings,
    progress: Callable[[int], object],
    columns: Columns,
) -> Learner:
    inputs = base.inputs if base else ModelInputs()
    columns = columns.of_model(inputs.names, inputs.block)
    pairs = read_columns(paths, columns, score_min=settings.score_min, score_max=settings.score_max, skip_bad=False)
    require_target(pairs, inputs.target, columns)
    n_features = pairs.features.shape[1]
    if base is not None:
        require_features(base, n_features, ", ".join(map(str, paths)))
        for words in evidence(base, pairs.features, pairs.true_score, settings.score_max - settings.score_min):
            _log.warning("%s", words)
    names = pairs.feature_names
    run = Run(
        n_features, settings, holdout, digest_of(base.network) if base else None, features=names, order=names,
        encoder=inputs.block, target=pairs.target or inputs.target,
    )  # fmt: skip
    learner = Learner(run, base.network if base else None)
    count = len(pairs) if until is None else until + 1
    if count > len(pairs):
        raise TrainingError(f"the last position is {len(pairs) - 1}, but {until} was requested")
    for start in range(0, count, _BLOCK_PAIRS):
        stop = min(count, start + _BLOCK_PAIRS)
        learner.take(pairs.block(start, stop))
        progress(stop - start)
    return learner
