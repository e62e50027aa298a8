"""How much of the trunk's training one tenant may drive."""

from __future__ import annotations

import math
from collections import Counter, deque
from collections.abc import Sequence

from sidecar.learning.training_settings import TrainingSettings

STEPS = 1000
"""Consecutive steps of the trunk of which a tenant may drive no more than its share; and if all pairs of as many steps are of
one tenant, it is alone."""


class Share:
    """Lets pairs train the trunk as long as no tenant has more than its share of the last ones.

    A tenant that is alone is not limited, and what it trains then does not count once others come.

    passed: pairs that it did not let. run: whose the last pairs that came are, and how many in succession: infinitely many as
    long as there were no others, so that a first tenant is alone until another one comes.
    """

    def __init__(self, settings: TrainingSettings) -> None:
        steps = settings.steps_per_batch if settings.replay_mix else 1
        self._window = max(1, STEPS // steps) * settings.new_pairs
        self._most = math.floor(settings.tenant_share * self._window)
        self._recent: deque[str] = deque()
        self._counts: Counter[str] = Counter()
        self.passed = 0
        self.run: tuple[str | None, float] = None, math.inf

    def note(self, tenants: Sequence[str]) -> None:
        """Take the tenants of the next pairs, "" for none, that come; when they train the trunk is told by `admit`."""
        last, count = self.run
        for tenant in tenants:
            last, count = tenant, count + 1 if last in (tenant, None) else 1
        self.run = last, count

    def admit(self, tenants: Sequence[str]) -> list[bool]:
        """Which of the next pairs, of these tenants, train the trunk; one of none, "", always does."""
        alone = self.run[0] if self.run[1] >= self._window else None
        admitted, counts, most = [], self._counts, self._most
        for tenant in tenants:
            admits = tenant == alone or not tenant or counts[tenant] < most
            if not admits:
                self.passed += 1
            elif tenant != alone:
                self._add(tenant)
            admitted.append(admits)
        return admitted

    @property
    def recent(self) -> Sequence[str]:
        """The tenants of the last pairs that it let, oldest first; `restore` continues from them."""
        return self._recent

    def restore(self, recent: Sequence[str], passed: int, run: tuple[str | None, float]) -> None:
        """Continue from the tenants of the last pairs."""
        for tenant in recent:
            self._add(tenant)
        self.passed, self.run = passed, run

    def _add(self, tenant: str) -> None:
        if len(self._recent) == self._window:
            self._counts[self._recent.popleft()] -= 1
        self._recent.append(tenant)
        self._counts[tenant] += 1
