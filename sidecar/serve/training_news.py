"""What training has had to do about its pairs and its weights, told in the log when it happens."""

from __future__ import annotations

import logging

from sidecar.log import Complaints
from sidecar.online.learner import Learner
from sidecar.settings import env_of

_log = logging.getLogger(__name__)


class TrainingNews:
    """Looks at a learner from time to time. What happened before the first look is no news."""

    def __init__(self) -> None:
        self._complaints = Complaints(_log)
        self._told: tuple[int, int, int] | None = None

    def look(self, learner: Learner) -> None:
        """Log what is new since the last look."""
        trainer = learner.trainer
        now = trainer.outliers.count, trainer.divergence.count, trainer.shifts
        left_out, diverged, shifted = (new - old for new, old in zip(now, self._told or now, strict=True))
        self._told = now
        if left_out > 0:
            self._complaints.warn(
                "outliers",
                "%d pairs were recorded and not trained on: more than a quarter of their features are unlike those of all "
                "others; most often %s",
                left_out,
                trainer.outliers.in_words(learner.run.order),
                count=left_out,
            )
        if diverged > 0:
            self._complaints.warn(
                "divergence",
                "the weights had diverged and went back to earlier ones; for a while the learning rate is %g times what is "
                "set. If this goes on, set a lower one (%s)",
                trainer.divergence.share,
                env_of("learning_rate"),
                count=diverged,
            )
        if shifted > 0:
            self._complaints.warn(
                "shift",
                "the scores have come to mean something else: the usual error has risen and stays high; the pairs from before "
                "are no longer trained on",
                count=shifted,
            )
