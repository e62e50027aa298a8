"""Publishing what a learner has learned so far, from copies, so that training can continue meanwhile."""

from __future__ import annotations

import contextlib
import ctypes
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

from sidecar.checkpoints.directory import STABLE, linked
from sidecar.checkpoints.heads import changed_heads, publish_heads
from sidecar.checkpoints.judging.gate import Evidence
from sidecar.checkpoints.publishing import Published, Terms, publish_network
from sidecar.checkpoints.rollbacks import read_rollbacks
from sidecar.journal.run import Run
from sidecar.log import event
from sidecar.online.learner import Learner
from sidecar.online.rollback import evidence_of_rollback, try_to_restore_anchor
from sidecar.state.anchor import read_anchor, write_anchor
from sidecar.state.published_pairs import write_published_pairs

_log = logging.getLogger(__name__)
PARITY_PAIRS = 1024
"""The exported graph must agree with the trainer on this many real pairs, the newest in the replay buffer."""


def about_inputs(run: Run) -> dict[str, Any]:
    """What the JSON of a run's checkpoints says of their inputs and scores, as far as it is known."""
    named = {"feature_order": [*run.order]} if run.order else {}
    encoder = run.encoder.as_json() if run.encoder else {}
    return {**named, **encoder, **({"target": run.target} if run.target else {})}


def publication(learner: Learner, terms: Terms, state_directory: Path) -> Callable[[], Published]:
    """A function that publishes the present averaged weights. It is to be called once, on any thread.

    It raises what `publish_network` raises. The learner must have a model (`learner.trainer.ema`).
    """
    trainer = learner.trainer
    assert trainer.ema is not None
    network = trainer.network(trainer.ema)
    held_out = learner.evidence()
    real = trainer.replay.rows(newest=PARITY_PAIRS)[:, : learner.run.n_features]
    pairs_seen = trainer.trained
    learned = learner.learned
    models = learner.tenants.models(trainer) if learner.tenants is not None else []
    description = {
        "step": trainer.step,
        "pairs_seen": pairs_seen,
        **about_inputs(learner.run),
        "settings": {**learner.run.as_json()["settings"], "holdout": learner.run.holdout_fraction},
        "journal": {"directory": str(state_directory.resolve()), "first": learner.first, "last": learner.position - 1},
    }

    def publish() -> Published:
        sets = [Evidence("held-out pairs", held_out[:, :-2], held_out[:, -2], group=held_out[:, -1])]
        anchor, readable = None, True
        if stable := linked(terms.directory, STABLE):
            try_to_restore_anchor(state_directory, stable)  # where a crash came between its link and its anchor
        try:
            anchor = read_anchor(state_directory)  # read each time, because `promote` may have renewed it
        except OSError as error:  # it may pass: the anchor stays as it is
            readable = False
            _log.warning("%s: the gate judges without the anchor: %s", state_directory, error)
        if anchor is not None and anchor.shape[1] == held_out.shape[1]:
            sets.append(Evidence("anchor", anchor[:, :-2], anchor[:, -2]))
        if found := evidence_of_rollback(terms.directory, state_directory, {**description, "n_features": network.n_features}):
            sets.append(found)
        published = publish_network(network, terms, sets, real, description)
        heads = changed_heads(models, terms.directory)
        for head, its in zip(heads, publish_heads(heads, terms, published.gate, real, description), strict=True):
            if its is not None:
                name, (verdict, reason) = its.checkpoint.name, its.gate
                event(_log, "head published", tenant=head.name, version=name, gate=verdict, reason=reason)
        _trim_memory()
        try:
            if published.gate.verdict == "stable" and readable:
                on_trial = read_rollbacks(terms.directory).on_trial
                write_anchor(state_directory, held_out, on_trial.get(published.checkpoint.name, ""))
            write_published_pairs(state_directory, learned)
        except OSError as error:  # the checkpoint is valid; the gate keeps the old anchor
            name = published.checkpoint.name
            _log.warning("%s: the anchor and counter for %s were not written: %s", state_directory, name, error.strerror)
        return published

    return publish


def _trim_memory() -> None:
    """Give memory that onnxruntime has freed back to the system; the C library would keep some megabytes for this thread."""
    with contextlib.suppress(OSError, AttributeError):  # not every C library can do this
        ctypes.CDLL(None).malloc_trim(0)
