"""The online trainer takes pairs in order and trains weights on them.

It is a function of its settings, its base model and the pairs: it knows neither clock nor disk.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from onnx_builder.network import Array, Network
from sidecar.learning.device.stacked import Device
from sidecar.learning.drift.moving_mean import FeatureDrift
from sidecar.learning.drift.outliers import Outliers
from sidecar.learning.head import Head
from sidecar.learning.metrics import plcc, rmse
from sidecar.learning.online.divergence import JUDGED_PAIRS, Divergence, Errors, mean_error
from sidecar.learning.online.fits import FIRST_PAIRS, LEAST_ERROR, Evidence, Fit, next_fit, no_evidence
from sidecar.learning.online.weights import Weights
from sidecar.learning.optim.learning_rate import warmed_up
from sidecar.learning.replay import replay_buffer
from sidecar.learning.replay.ring import ReplayBuffer
from sidecar.learning.replay.shift import ShiftDetector
from sidecar.learning.training_settings import TrainingSettings

PREQUENTIAL_PAIRS = 1000
MEASURED_AT = (64, FIRST_PAIRS)
"""Training pairs after which a base model's units are measured again; they are final after the last, or a later fit."""
OUTLIERS_MEASURED_AT = (64, 256, 512, 1024, 2048)
"""Training pairs after which it is measured again what is usual; pairs in the buffer that are outliers by then leave it."""
_MEASURED_PAIRS = 1024
DECIDE_DIVERGENCE = ("learning_rate", "optimizer", "momentum", "weight_decay", "max_grad_norm", "loss", "batch_size")
"""Where one of these settings is another, the learning rate is no longer lowered for what diverged before."""
RATE_UNIT = 100.0
"""The learning rate from the settings is multiplied by this: 1e-4 is 0.01 in the units that the head trains in (see
`learning/conditioning.py`). Measured in `benchmarks/fine_tuning.py`: with half of it every base model learns more slowly; with
twice as much the live weights are less steady."""
WAS_GOOD = 0.2
"""A base model whose error on its first pairs is under this share of that below was good to begin with."""
FAR_OFF = 0.1
"""A base model whose error on its first pairs is this share of the range of scores (10 points of 100), or more, has little to
lose: its learning rate is not warmed up. For a better one, warm-up starts at a proportional share of the rate. Measured in
`benchmarks/online_learning.py`: otherwise fr_regressor_v3, 19 points off, spends its first thousand pairs on the warm-up."""

USUAL_ERRORS = 6.0
"""With Huber's loss, an error counts as it is up to so many times the usual one, at least up to a hundredth of the range of
scores. Measured in `benchmarks/robustness.py`."""
TRUSTED_ERRORS = 60.0
"""Later fits leave out pairs whose error is more than so many times the usual one, at least a twentieth of the range of scores.
Measured in `benchmarks/robustness.py`."""
_ERROR_HORIZON_PAIRS, _MOST_AT_ONCE = 200, 1.01
"""The usual error falls with this horizon, and rises by no more than this factor a group: where many scores are suddenly far
off, they may be wrong."""
LEAST_PLCC = 0.7
"""Earlier pairs are given up for newer ones whose scores the model still predicts with this correlation."""


class Group(NamedTuple):
    """A completed group of new pairs. place: that of its last pair among those given; step: steps run so far, with its own.

    loss: mean squared error of its first batch before its first step, in score points squared.
    """

    place: int
    step: int
    loss: float


class Trainer:
    """Trains a head on groups of new pairs and on pairs drawn again from the replay buffer.

    The first step of a group trains on its new pairs and on replayed ones, up to `batch_size`. Then the new pairs enter the
    buffer, and each further step trains on pairs drawn from it.

    A new model (no base) is fitted to the first 256 pairs by the offline recipe; its units are measured on these. A base model
    learns from the first group on, in units measured on that group and measured again after 64 and 256 training pairs. This
    changes how its weights learn, not what they compute. From time to time the average is fitted to all pairs in the replay
    buffer, and takes the place of the live weights and of itself if that is better (see `fits.py`).

    base: takes n_features. device: where its steps run, None in numpy; a new model is fitted in numpy. weights: None until a
    new model is fitted. replay: each row is a pair as it arrived (features, score). trained: how many pairs were trained on.
    prequential: what `ema` predicted for the last 1000 of them before they were trained on, and their scores. drift: how far
    their features are from what the base model's own scaling expects, if it has one, else from the first pairs; None before
    there are any. warmup_start: the share of the learning rate that warm-up begins with; None before a base model's first
    group. step: steps run; steps_left: those of the last group that `finish` would run. skipped_steps: those left out because a
    number would not have been finite after them. shifts: how often earlier pairs were given up because scores had shifted. fit:
    the one that is due after those steps; refits: how many that were not a new model's first were adopted, and how many were
    not. outliers: what pairs are left out for; divergence: when weights go back.
    """

    def __init__(
        self, n_features: int, settings: TrainingSettings, base: Network | None = None, device: Device | None = None
    ) -> None:
        self.n_features, self.settings, self._device = n_features, settings, device
        self.weights: Weights | None = None
        self.fit: Fit | None = None
        self.refits = {"adopted": 0, "rejected": 0}
        self.step = self.skipped_steps = self.trained = self.steps_left = 0
        self.warmup_start: float | None = 0.0 if base is None else None
        self._usual_error = math.inf
        self.shifts = 0
        self._shift = ShiftDetector((settings.score_max - settings.score_min) / 1000)
        self.replay = replay_buffer(settings, n_features + 1)
        self.prequential = ReplayBuffer(PREQUENTIAL_PAIRS, 2)
        self.outliers = Outliers(n_features)
        self.divergence = Divergence()
        self.drift: FeatureDrift | None = None
        self._drift_is_measured = False  # on pairs, and to be measured again with the units
        self._rows: Array = np.zeros((settings.replay_capacity, n_features + 2), dtype=np.float32)
        """The pairs of the replay buffer in the form of `Head.rows`, in the same places."""
        self._new = self._room_for(FIRST_PAIRS if base is None else settings.new_pairs)
        self._waiting, self._are_usual = 0, False
        self._steps: Iterator[float] | None = None  # of the last group
        self._generator = np.random.default_rng(settings.seed)
        if base is not None:
            self.weights = Weights(settings, base, base, device=device)
            self.drift = FeatureDrift.of_network(base)
            self.outliers.begin(base)

    @property
    def live(self) -> Head | None:
        """The weights of the last step."""
        return self.weights.live if self.weights else None

    @property
    def ema(self) -> Head | None:
        """Their average, which is what gets published."""
        return self.weights.ema if self.weights else None

    @property
    def missing(self) -> int:
        """How many more pairs complete the present group, or the first pairs that a new model is fitted to."""
        return len(self._new) - self._waiting

    @property
    def until_fit(self) -> int:
        """How many more pairs it takes until the next fit begins."""
        if self.weights is None and self.fit is None:
            return self.missing
        size = len(self._new)
        return -(-(next_fit(self.trained) - self.trained) // size) * size - self._waiting

    def add(
        self, features: Array, scores: Array, finish: bool = True, evidence: Evidence = no_evidence, usual: bool = False
    ) -> list[Group]:
        """Take pairs to train on, in order: features (n, n_features), scores (n,) in points. Returns the completed groups.

        finish: False leaves the last group's steps, and a fit, to `advance` and `finish`, or to the next call that needs them.
        evidence: gives the pairs that never train, by which a fit is judged that begins with the last pair given. usual: there
        are no outliers among these pairs, as `outliers` says now.
        """
        groups: list[Group] = []
        self._are_usual = usual and (self._are_usual or not self._waiting)
        start, count = 0, len(scores)
        while start < count:
            stop = min(count, start + self.missing)
            room = self._new[self._waiting : self._waiting + stop - start]
            room[:, : self.n_features] = features[start:stop]
            room[:, self.n_features] = scores[start:stop]
            self._waiting += stop - start
            start = stop
            if self._waiting == len(self._new) and self._is_complete():
                self._waiting = 0
                self.trained += len(self._new)
                loss = self._take_group(evidence)
                if loss is not None:
                    groups.append(Group(stop - 1, self.step + self.steps_left, loss))
        if finish:
            self.finish()
        return groups

    def advance(self) -> None:
        """Run one of the remaining steps of the last group, or take over the fit that is due after them."""
        if self._steps is None:
            self._take_over()
        else:
            with np.errstate(over="ignore", invalid="ignore"):
                self._advance(self._steps)

    def finish(self) -> None:
        """Run the remaining steps of the last group, and take over the fit that is due after them."""
        if self._steps is not None:
            with np.errstate(over="ignore", invalid="ignore"):
                while self._steps is not None:
                    self._advance(self._steps)
        self._take_over()

    def _advance(self, steps: Iterator[float]) -> None:
        if next(steps, None) is None:
            self._steps = None
        self.steps_left -= 1

    def network(self, head: Head) -> Network:
        """The function of `live` or `ema` as a network in the base model's own units."""
        self.finish()
        assert self.weights is not None
        return self.weights.network(head)

    def state(self) -> dict[str, Array]:
        """Everything that later training depends on, as copies by name; `from_state` continues from it bit for bit."""
        self.finish()
        state = {
            "counts": np.array([self._waiting, self.trained, self.step, self.skipped_steps, self.replay.added]),
            "usual_error": np.array(self._usual_error),
            **self.outliers.state(),
            **self.divergence.state(),
            "shifts": np.array([self.shifts, *self._shift.state()]),
            "refits": np.array([*self.refits.values()]),
            "waiting": self._new[: self._waiting].copy(),
            "replay": self.replay.rows(),
            "replay_places": self.replay.places().astype(np.int32),
            "replay_upcoming": self.replay.upcoming.astype(np.int32),
            "prequential": self.prequential.rows(),
            "generator": np.frombuffer(json.dumps(self._generator.bit_generator.state).encode(), dtype=np.uint8),
        }
        if self.weights is not None:
            state |= self.weights.state()
        if self.warmup_start is not None:
            state["warmup_start"] = np.array(self.warmup_start)
        if self.drift is not None:
            state |= {**self.drift.state(), "drift_is_measured": np.array(self._drift_is_measured)}
        return state

    @classmethod
    def from_state(
        cls, n_features: int, settings: TrainingSettings, state: Mapping[str, Array], device: Device | None = None
    ) -> Trainer:
        """A trainer that continues from a `state` that was made with equal settings.

        If the generator, the order of replay or the optimizer's part is missing, it starts anew; if the places of the replayed
        pairs are, they get others. Raises KeyError, ValueError or NetworkError if the state was not made by `state`.
        """
        trainer = cls(n_features, settings, device=device)
        if "structure" in state:
            trainer.weights = Weights.from_state(settings, state, device)
            trainer._new = trainer._room_for(settings.new_pairs)
        trainer.warmup_start = float(state["warmup_start"]) if "warmup_start" in state else None
        if "drift" in state:
            trainer.drift, trainer._drift_is_measured = FeatureDrift.from_state(state), bool(state["drift_is_measured"])
        trainer._waiting, trainer.trained, trainer.step, trainer.skipped_steps, added = state["counts"].tolist()
        trainer._usual_error = float(state.get("usual_error", math.inf))
        if "usual" in state:
            trainer.outliers = Outliers.from_state(state)
        if "divergences" in state:
            trainer.divergence = Divergence.from_state(state)
        if "shifts" in state:
            trainer.shifts = int(state["shifts"][0])
            trainer._shift.load(state["shifts"][1:])
        trainer._new[: trainer._waiting] = state["waiting"]
        trainer.replay.restore(state["replay"], added, state.get("replay_places"))
        if "replay_upcoming" in state:
            trainer.replay.upcoming = state["replay_upcoming"].astype(np.intp)
        trainer._fill_rows()
        trainer.prequential.add(state["prequential"])
        if "refits" in state:
            trainer.refits = dict(zip(trainer.refits, state["refits"].tolist(), strict=True))
        if "generator" in state:
            trainer._generator.bit_generator.state = json.loads(state["generator"].tobytes())
        return trainer

    def configured(self, settings: TrainingSettings) -> Trainer:
        """A trainer with other settings that continues with these weights, their average and momentum, and these pairs."""
        state = self.state()
        if settings.seed != self.settings.seed:
            del state["generator"], state["replay_upcoming"]
        if (settings.replay_policy, settings.replay_capacity) != (self.settings.replay_policy, self.settings.replay_capacity):
            del state["replay_places"]
            state.pop("replay_upcoming", None)
        if settings.optimizer != self.settings.optimizer and self.weights is not None:
            for name in self.weights.optimizer_keys:
                del state[name]
        state["waiting"], state["counts"][0] = state["waiting"][:0], 0
        trainer = Trainer.from_state(self.n_features, settings, state, self._device)
        if any(getattr(settings, name) != getattr(self.settings, name) for name in DECIDE_DIVERGENCE):
            trainer.divergence.forgive()
        return self._with_waiting(trainer)

    def begun_anew(self, settings: TrainingSettings, base: Network) -> Trainer:
        """A trainer that starts with a base model's weights and continues with these pairs."""
        self.finish()
        trainer = Trainer(self.n_features, settings, base, self._device)
        trainer.replay.restore(self.replay.rows(), self.replay.added)
        trainer._fill_rows()
        trainer.outliers = self.outliers
        trainer.outliers.begin(base)
        return self._with_waiting(trainer)

    def remember(self, features: Array, scores: Array) -> None:
        """Put pairs that the base model was trained on into the replay buffer: features (n, n_features), scores (n,)."""
        self.replay.add(np.column_stack([features, scores]).astype(np.float32))
        self._fill_rows()

    def reorder(self, places: Sequence[int]) -> None:
        """Take the features of all pairs so far from these places. The weights stay, and must be followed by a base's."""
        self.finish()
        for pairs in (self.replay.data, self._new):
            pairs[:, : self.n_features] = pairs[:, places]
        self.outliers.reorder(places)

    def _with_waiting(self, trainer: Trainer) -> Trainer:
        waiting = self._new[: self._waiting]  # may complete a group, if groups are smaller now
        trainer.add(waiting[:, : self.n_features], waiting[:, self.n_features])
        return trainer

    def _room_for(self, pairs: int) -> Array:
        return np.empty((pairs, self.n_features + 1), dtype=np.float32)

    def _is_complete(self) -> bool:
        """Whether the waiting pairs are a group: not if there are outliers among them, which leave it."""
        if self._are_usual and self.trained >= OUTLIERS_MEASURED_AT[-1]:  # from then on, no more pairs become outliers
            return True
        features = self._new[:, : self.n_features].copy()
        if self.weights is None and self.fit is None:
            usual = self.outliers.sort_out(features)
        elif np.count_nonzero(outliers := self.outliers.among(features)):  # a fraction of the time that `any` takes
            self.outliers.leave_out(features[outliers], self.trained)
            usual = ~outliers
        else:
            return True
        kept = self._new[usual]
        self._waiting = len(kept)
        self._new[: self._waiting] = kept
        return self._waiting == len(self._new)

    def _take_group(self, evidence: Evidence) -> float | None:
        """Learn from a complete group. Returns the loss before the first step; None if a new model was fitted to the pairs."""
        self.finish()
        if self.weights is None:
            self.fit = Fit(self.settings, self._new)
            self.replay.add(self._new)
            self._new = self._room_for(self.settings.new_pairs)
            return None
        before = self.trained - len(self._new)
        if before < OUTLIERS_MEASURED_AT[-1] or not self.weights.has_units:
            given_up = any(before < count <= self.trained for count in OUTLIERS_MEASURED_AT) and self._measure_outliers()
            if given_up or not self.weights.has_units or any(before < count <= self.trained for count in MEASURED_AT):
                self._measure_units(self.weights)
        if next_fit(before) <= self.trained and len(self.replay) + len(self._new) >= FIRST_PAIRS:
            seen = np.concatenate([self.replay.rows(), self._new])
            network, trusted = self.weights.network(self.weights.ema), self._trusted_error
            was_good = self.warmup_start is not None and 0 < self.warmup_start < WAS_GOOD
            self.fit = Fit(self.settings, seen, network, trusted, evidence(), careful=was_good)
        with np.errstate(over="ignore", invalid="ignore"):  # a step after which a number is not finite is left out
            self._steps = self._train(self.weights)
            self.steps_left = self.settings.steps_per_batch if self.settings.replay_mix else 1
            return next(self._steps)

    def _take_over(self) -> None:
        """Continue with what the fit gives: a new model, or what is better than the average."""
        if self.fit is None:
            return
        result, self.fit = self.fit.result(), None
        if result is None:
            self.refits["rejected"] += 1
            return
        units, kept = result.conditioning, None
        if self.weights is None:
            self.drift = FeatureDrift.of_network(result.network)
        else:
            self.refits["adopted"] += 1
            kept = units.apply(self.weights.network(self.weights.kept))
        network = units.apply(result.network)
        self.weights = Weights(self.settings, network, network, kept, units, device=self._device)
        self._fill_rows()

    def _measure_outliers(self) -> bool:
        """Measure again what is usual, and give up pairs of the replay buffer that are not. Returns whether there were any."""
        newest = [self.replay.rows(newest=_MEASURED_PAIRS), self._new]
        self.outliers.measure(np.concatenate(newest)[:, : self.n_features])
        kept = self.outliers.give_up(self.replay.rows()[:, : self.n_features])
        if kept.all():
            return False
        self.replay.keep(kept)
        return True

    def _measure_units(self, weights: Weights) -> None:
        """Measure the units again, on the pairs so far."""
        seen = np.concatenate([self.replay.rows(), self._new])[:, : self.n_features]
        if self.drift is None or self._drift_is_measured:
            self.drift, self._drift_is_measured = FeatureDrift.of_pairs(seen), True
        self.weights = weights.in_units_of(seen)
        self._fill_rows()

    def _fill_rows(self) -> None:
        """Convert the pairs of the replay buffer to the present units, each in its place."""
        if self.live is not None:
            count, n = len(self.replay), self.n_features
            pairs = self.replay.data[:count]
            with np.errstate(over="ignore"):
                self.live.rows(pairs[:, :n], pairs[:, n], out=self._rows[:count])

    def _train(self, weights: Weights) -> Iterator[float]:
        """Run the steps of the present group, one at a time; before each, yield its loss in score points squared."""
        settings, new, head, unit = self.settings, self._new, weights.live, weights.live.score_scale**2
        self._new = self._room_for(settings.new_pairs)
        if settings.loss == "huber":
            head.bound_errors(max(USUAL_ERRORS * self._usual_error, self._range / 100) / head.score_scale)
        features = new[:, : self.n_features].copy()  # numpy takes less time with it than with a part of rows
        rows = head.rows(features, new[:, self.n_features])
        batch = head.batch(min(settings.batch_size, len(new) + len(self.replay)))
        batch[: len(new)] = rows
        for places in self.replay.draw(self._generator, 1, len(batch) - len(new)):
            self._rows.take(places, axis=0, out=batch[len(new) :], mode="clip")
        loss = head.loss_and_gradient(batch)
        yield loss * unit

        if self.drift is not None:
            self.drift.add(features)
        predicted = np.empty((len(new), 2), dtype=np.float32)
        predicted[:, 0], predicted[:, 1] = weights.ema.predict_rows(rows), new[:, self.n_features]
        self.prequential.add(predicted)
        errors = np.abs(predicted[:, 0] - predicted[:, 1])
        errors.sort()
        median = float(errors[len(errors) // 2])
        self._note_error(median, len(errors))
        self._give_up_earlier_pairs(median, len(errors))
        if self.warmup_start is None:
            self.warmup_start = self._how_far_off(predicted)
        complete = self.divergence.note(loss, float(errors.dot(errors)) / (len(errors) * unit))
        undo, first_step, skipped = weights.undo(), self.step, self.skipped_steps

        self._step(weights)
        self._rows[self.replay.add(new)] = rows

        batch = head.batch(min(settings.batch_size, len(self.replay)))
        further = settings.steps_per_batch - 1 if settings.replay_mix else 0
        for places in self.replay.draw(self._generator, further, len(batch)):
            self._rows.take(places, axis=0, out=batch, mode="clip")
            yield head.loss_and_gradient(batch) * unit
            self._step(weights)

        if not weights.is_finite():
            undo()
            self.skipped_steps = skipped + self.step - first_step
        if complete:
            self._look_at(weights)

    def _look_at(self, weights: Weights) -> None:
        """After a window of groups: weights that have diverged go back to their average, or to those that were kept."""
        some = self._rows[: len(self.replay) : len(self.replay) // JUDGED_PAIRS + 1, -1]
        if self.divergence.looks_wrong(float(some.var())):
            newest = self.replay.places()[-JUDGED_PAIRS:]
            rows, scores = self._rows[newest], self.replay.data[newest, self.n_features]
            live, average, kept = (mean_error(h.predict_rows(rows), scores) for h in (weights.live, weights.ema, weights.kept))
            errors = Errors(live, average, kept, mean_error(np.full_like(scores, np.median(scores)), scores))
            if self.divergence.judge(errors, self._range / 100):
                weights.go_back(weights.ema if errors.average <= errors.kept else weights.kept)
                return
        elif self.divergence.keeps_weights:
            weights.keep()
        self.divergence.stay_quiet()

    def _how_far_off(self, predicted: Array) -> float:
        """How far off predictions are, from 0 to 1; predicted: predictions and true scores (n, 2)."""
        off = rmse(predicted[:, 0], predicted[:, 1]) / (FAR_OFF * self._range)
        return min(1.0, off) if math.isfinite(off) else 1.0

    @property
    def _range(self) -> float:
        return self.settings.score_max - self.settings.score_min

    @property
    def _trusted_error(self) -> float:
        return max(TRUSTED_ERRORS * self._usual_error, LEAST_ERROR * self._range)

    def _note_error(self, error: float, pairs: int) -> None:
        """Follow the usual error, the moving average of the median error of each group, in score points."""
        usual = self._usual_error
        if usual == math.inf:
            self._usual_error = error
        elif math.isfinite(error):
            decay = (1 - 1 / _ERROR_HORIZON_PAIRS) ** pairs
            self._usual_error = min(error + decay * (usual - error), usual * _MOST_AT_ONCE)

    def _give_up_earlier_pairs(self, error: float, pairs: int) -> None:
        """If the scores have shifted, with the present group, keep only the replayed pairs since then.

        error: the group's median error. Predictions of shifted scores still follow them; those of wrong ones do not.
        """
        since = self._shift.add(error, pairs)
        if not since or self.settings.replay_policy != "balanced":
            return
        predicted = self.prequential.rows(newest=since)
        if plcc(predicted[:, 0], predicted[:, 1]) >= LEAST_PLCC:
            self.shifts += 1
            recent = since - pairs  # the group itself comes into the buffer later
            self.replay.keep(np.arange(len(self.replay)) >= len(self.replay) - recent)
            self._fill_rows()

    def _step(self, weights: Weights) -> None:
        settings, peak = self.settings, RATE_UNIT * self.settings.learning_rate * self.divergence.share
        if not weights.step(warmed_up(peak, self.step, settings.warmup_steps, self.warmup_start or 0.0)):
            self.skipped_steps += 1
        self.step += 1
