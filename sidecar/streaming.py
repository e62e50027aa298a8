"""`train-offline --stream`: pairs in their order through the online learner, from a sidecar's journal or from files.

From a state directory it takes the runs that are recorded there, and makes the bytes of the checkpoint that the sidecar
published at the same position: so a checkpoint can be audited.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from sidecar.base_model import BaseModel, ExportIo, require_features
from sidecar.checkpoints import check_writable
from sidecar.gate import Evidence
from sidecar.journal import read_journal
from sidecar.learner import Learner, Run, held_out_at
from sidecar.learning.recipe import TrainingError
from sidecar.online import digest_of, first_run, kept_base
from sidecar.pairs import decode_pair
from sidecar.publishing import Published, Terms, publish_network
from sidecar.recorded import read_pairs
from sidecar.trainer import TrainingSettings

_PARITY_PAIRS = 1024
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
) -> Published:
    """Train in stream order and publish the EMA weights as a checkpoint in `output`.

    paths: one state directory, or files of recorded pairs, to which base, holdout and settings (the online defaults) apply.
    until: the last position to train on, by default the last there is. progress: told of every thousand pairs.

    Raises JournalError or StateError for a journal that does not hold all that is needed, RecordedPairsError, NetworkError,
    CheckpointError, and TrainingError where there are too few pairs for a checkpoint.
    """
    check_writable(output)
    first = Path(paths[0])
    if len(paths) == 1 and first.is_dir():
        learner = _from_journal(first, until, progress)
    else:
        share = HOLDOUT_FRACTION if holdout is None else holdout
        learner = _from_files(paths, until, base, share, settings or TrainingSettings(), progress)
    trainer = learner.trainer
    if trainer.ema is None or not trainer.trained:
        raise TrainingError(f"{learner.position} pairs make no checkpoint yet; a fresh head needs 256 to train on")
    run = learner.run
    held_out = learner.held_out.rows()
    terms = Terms(output, run.settings.score_max - run.settings.score_min, base, export_io if base else "canonical")
    description = {
        "step": trainer.step,
        "pairs_seen": trainer.trained,
        "settings": run.as_json()["settings"],
        "journal": {"first": 0, "last": learner.position - 1},
        "data": [str(path) for path in paths],
    }
    real = trainer.replay.rows()[-_PARITY_PAIRS:, : run.n_features]
    evidence = Evidence("held-out pairs", held_out[:, :-1], held_out[:, -1])
    return publish_network(trainer.network(trainer.ema), terms, [evidence], real, description)


def _from_journal(state_directory: Path, until: int | None, progress: Callable[[int], object]) -> Learner:
    first = first_run(state_directory)
    if first is None:
        raise TrainingError(f"{state_directory}: no journal with a run in it; expected a sidecar's state directory")
    learner = Learner(first, kept_base(state_directory, first))
    for entry in read_journal(state_directory):
        if until is not None and entry.position > until:
            break
        if entry.run is not None:
            run = Run.from_json(entry.run)
            learner.begin(run, kept_base(state_directory, run))
        elif entry.line is None:
            learner.pass_over()
        else:
            pair = decode_pair(entry.line)
            features = np.array(pair.features, dtype=np.float32)
            learner.take(features, pair.true_score, held_out_at(pair, features.tobytes()))
            if learner.position % 1000 == 0:
                progress(1000)
    if until is not None and learner.position <= until:
        raise TrainingError(f"{state_directory}: its last position is {learner.position - 1}; {until} is asked for")
    return learner


def _from_files(
    paths: Sequence[str | Path],
    until: int | None,
    base: BaseModel | None,
    holdout: float,
    settings: TrainingSettings,
    progress: Callable[[int], object],
) -> Learner:
    pairs = read_pairs(paths, score_min=settings.score_min, score_max=settings.score_max)
    n_features = pairs.features.shape[1]
    if base is not None:
        require_features(base, n_features, ", ".join(map(str, paths)))
    run = Run(n_features, settings, holdout, digest_of(base.network) if base else None)
    learner = Learner(run, base.network if base else None)
    count = len(pairs) if until is None else until + 1
    if count > len(pairs):
        raise TrainingError(f"the last position is {len(pairs) - 1}; {until} is asked for")
    for row in range(count):
        learner.take(pairs.features[row], float(pairs.true_score[row]), pairs.position[row])
        if learner.position % 1000 == 0:
            progress(1000)
    return learner
