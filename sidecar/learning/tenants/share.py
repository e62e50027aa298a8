"""How much of the trunk's training one tenant may drive."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from sidecar.learning.tenants.whose import NOBODY, Whose
from sidecar.learning.training_settings import TrainingSettings
from sidecar.settings import MOST_TENANTS

STEPS = 1000
"""Consecutive steps of the trunk of which a tenant may drive no more than its share; and if all pairs of as many steps are of
one tenant, it is alone."""


class Share:
    """Lets pairs train the trunk as long as no tenant has more than its share of the last ones.

    A tenant that is alone is not limited, and what it trains then does not count once others come.

    passed: pairs that it did not let. run: whose the last pairs that came are, and how many in succession: infinitely many, and
    anybody's, as long as there were none, so that a first tenant is alone until another one comes.
    """

    def __init__(self, settings: TrainingSettings) -> None:
        steps = settings.steps_per_batch if settings.replay_mix else 1
        self._window = max(1, STEPS // steps) * settings.new_pairs
        self._most = math.floor(settings.tenant_share * self._window)
        self._ring: Whose = np.empty(self._window, dtype=np.intp)
        self._let = 0
        self._counts = np.zeros(MOST_TENANTS + 1, dtype=np.intp)
        """How many of the last pairs are nobody's, and each tenant's."""
        self.passed = 0
        self.run: tuple[int | None, float] = None, math.inf

    def note(self, whose: Whose) -> None:
        """Take the tenants of the next pairs that come; when they train the trunk is told by `admit`."""
        if not len(whose):
            return
        others = np.flatnonzero(whose != whose[-1])
        last, count = int(whose[-1]), len(whose) - 1 - int(others[-1]) if len(others) else len(whose)
        before, so_many = self.run
        self.run = last, count + so_many if not len(others) and before in (last, None) else count

    def admit(self, whose: Whose) -> NDArray[np.bool_]:
        """Which of the next pairs, of these tenants, train the trunk (n,); one of nobody always does."""
        alone = self.run[0] if self.run[1] >= self._window else None
        admitted = np.ones(len(whose), dtype=bool)
        if alone is None and len(whose) <= self._window:
            counts = self._counts + self._counted(whose)
            if not np.count_nonzero(counts[1:] > self._most):
                self._add(whose)
                return admitted
        for place, tenant in enumerate(whose.tolist()):
            if tenant not in (alone, NOBODY) and self._counts[tenant + 1] >= self._most:
                admitted[place] = False
                self.passed += 1
            elif tenant != alone:
                self._add(whose[place : place + 1])
        return admitted

    @property
    def recent(self) -> Whose:
        """The tenants of the last pairs that it let, oldest first; `restore` continues from them."""
        return self._ring[np.arange(max(0, self._let - self._window), self._let) % self._window]

    def restore(self, recent: Whose, passed: int, run: tuple[int | None, float]) -> None:
        """Continue from the tenants of the last pairs."""
        recent = recent[-self._window :]
        self._ring[: len(recent)], self._let, self._counts = recent, len(recent), self._counted(recent)
        self.passed, self.run = passed, run

    def _add(self, whose: Whose) -> None:
        places = np.arange(self._let, self._let + len(whose)) % self._window
        gone = self._ring[places[max(0, self._window - self._let) :]]
        self._counts += self._counted(whose) - self._counted(gone)
        self._ring[places] = whose
        self._let += len(whose)

    def _counted(self, whose: Whose) -> NDArray[np.intp]:
        return np.bincount(whose + 1, minlength=MOST_TENANTS + 1)
