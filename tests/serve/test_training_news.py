"""What training has had to do about its pairs and weights is told in the log, once."""

from __future__ import annotations

import pytest

from sidecar.journal.run import Run
from sidecar.learning.training_settings import TrainingSettings
from sidecar.online.learner import Learner
from sidecar.serve.training_news import TrainingNews


@pytest.fixture
def learner(base):
    return Learner(Run(80, TrainingSettings(), 0.1, base="base"), base)


def leave_out(learner):
    learner.trainer.outliers.came += 3
    learner.trainer.outliers.by_feature[5] += 3


def diverge(learner):
    learner.trainer.divergence.count += 1
    learner.trainer.divergence.share = 0.25


def shift(learner):
    learner.trainer.shifts += 1


@pytest.mark.parametrize(
    ("happens", "told"),
    [
        (leave_out, ["3 pairs were recorded and not trained on", "features[5]"]),
        (diverge, ["went back to earlier ones", "0.25 times", "VMAFX_SIDECAR_LR"]),
        (shift, ["the scores have come to mean something else"]),
    ],
)
def test_what_is_new_is_told_once(learner, caplog, happens, told):
    news = TrainingNews()
    happens(learner)
    news.look(learner)
    assert not caplog.text, "what was before is no news"
    happens(learner)
    news.look(learner)
    news.look(learner)
    (line,) = caplog.messages
    assert all(words in line for words in told)
