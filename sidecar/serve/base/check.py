"""Looks at a new base model once the first pairs are there: was it read rightly, and is it fed rightly?"""

from __future__ import annotations

import logging
from collections.abc import Callable
from concurrent.futures import Executor, Future

from onnx_builder.network import Array, NetworkError
from sidecar.log import event
from sidecar.models.base_model import BaseModel
from sidecar.models.evidence import JUDGED_PAIRS, compared, judged
from sidecar.online.training import OnlineTraining

_log = logging.getLogger(__name__)
COMPARED_PAIRS = 32


class BaseCheck:
    """Runs both looks on the worker. If a model was not read rightly, no pair is trained on any more."""

    def __init__(self, base: BaseModel, online: OnlineTraining, score_range: float, worker: Executor) -> None:
        self._online, self._worker = online, worker
        self._looks: list[tuple[int, Callable[[Array, Array], str]]] = [
            (COMPARED_PAIRS, lambda features, scores: compared(base, features, score_range)),
            (JUDGED_PAIRS, lambda features, scores: judged(base, features, scores)),
        ]
        self._looking: Future[str] | None = None

    def turn(self) -> None:
        """Begin a look for which there are enough pairs, and say what the last one has found."""
        if self._looking is not None and self._looking.done():
            looking, self._looking = self._looking, None
            self._tell(looking)
        replay = self._online.learner.trainer.replay
        if self._looks and self._looking is None and not self._online.backlog.failed and len(replay) >= self._looks[0][0]:
            n_pairs, look = self._looks.pop(0)
            pairs = replay.rows(newest=n_pairs)
            self._looking = self._worker.submit(look, pairs[:, :-1], pairs[:, -1])

    def _tell(self, looking: Future[str]) -> None:
        try:
            if words := looking.result():
                _log.warning("%s", words)
        except NetworkError as error:
            self._online.backlog.stop(str(error))
            event(_log, "phase failed: pairs are recorded but not trained on", logging.ERROR, reason=str(error))
