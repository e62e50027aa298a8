"""Ten situations, as a person sees them: the page's first line says what is wrong, and so do the log and the alert.

Training is real, in this process; only the clock is not, so that hours pass at once.
"""

from __future__ import annotations

import json
import logging
import time
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

import sidecar.serve.status_board as board_module
from sidecar.journal.run import Run
from sidecar.learning.training_settings import TrainingSettings
from sidecar.monitoring.pages import Pages
from sidecar.monitoring.verdict.rules import DOWN, RULES, limits
from sidecar.network.http_server import start_http
from sidecar.online.training import OnlineTraining
from sidecar.serve.status_board import StatusBoard
from sidecar.settings import Settings
from sidecar.state.base_models import digest_of
from tests.running import wait_until

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("quick_fits")]
PAIRS_A_MINUTE = 60


class World:
    """A sidecar without its sockets. now: seconds; log: what it has logged about what is wrong."""

    def __init__(self, tmp_path, base, monkeypatch, caplog, page, **settings):
        self.page, self._caplog = page, caplog
        caplog.set_level(logging.INFO, "sidecar.monitoring.verdict.findings")
        self.now, self._epoch = 1000.0, time.time() - 6 * 3600
        clock = SimpleNamespace(monotonic=lambda: self.now, time=lambda: self._epoch + self.now)
        monkeypatch.setattr(board_module, "time", clock)
        self.settings = Settings(checkpoint_dir=tmp_path / "checkpoints", **settings)
        self.board = StatusBoard(self.settings)
        training = TrainingSettings(learning_rate=self.settings.learning_rate)
        self.online = OnlineTraining(tmp_path / "state", Run(80, training, 0.1, digest_of(base)), base)
        self.failed, self.others, self._sent = "", {}, 0
        pages = Pages(
            lambda: replace(self.board.status, progress=time.monotonic()), lambda: self.board.history,
            self.settings.checkpoint_dir, {"journal_max_bytes": self.settings.journal_max_bytes}, limits=limits(self.settings),
        )  # fmt: skip
        self.server = start_http("127.0.0.1:0", pages.look_up)

    def minutes(self, count, pairs=()):
        """Let minutes pass, in each of which some of the pairs arrive: features and scores, twelve to an encode."""
        for minute in range(count):
            some = [(x, y) for x, y in pairs[minute * PAIRS_A_MINUTE :][:PAIRS_A_MINUTE]]
            lines = [self._line(x, y) for x, y in some]
            if lines:
                assert all(answer.ok for answer in self.online.accept(lines))
            for _ in range(6):
                self.now += 10
                self.board.update(
                    self.online, accepting=True, failed=self.failed, connections=1, rejected={}, step_seconds=None,
                    others=self.others,
                )  # fmt: skip

    def _line(self, features, score):
        number, self._sent = self._sent, self._sent + 1
        about = {"job_id": f"j{number}", "group": f"g{number // 12}"}
        return json.dumps({**about, "features": features.tolist(), "true_score": float(score)}).encode()

    def first_line(self):
        """Of the page, once it is there."""
        self.page.open(f"http://{self.server.address}/", 1280)
        self.page.wait("!document.querySelector('#live').hidden")
        assert [message for message in self.page.console() if self.server.address in message] == []
        return self.page.ask("document.querySelector('#state').innerText")

    def is_told(self, name):
        """Whether page and log say what the alert says, and what to do; gives the first line and the log's detail."""
        rule = next(rule for rule in RULES if rule.name == name)
        (finding,) = (each for each in self.board.status.findings if each.alert == rule.alert)
        assert finding.firing
        assert finding.do == rule.do
        line = self.first_line()
        assert f" {finding.what}" in line
        assert rule.do.replace("`", "") in self.page.ask("document.querySelector('#findings').innerText")
        logged = next(record for record in self._caplog.records if record.__dict__.get("fields", {}).get("alert") == rule.alert)
        assert logged.levelname == "WARNING"
        assert logged.fields["do"] == rule.do
        return line, logged.fields["detail"]


@pytest.fixture
def world(tmp_path, base, monkeypatch, caplog, chromium):
    made = []

    def make(**settings):
        made.append(World(tmp_path, base, monkeypatch, caplog, chromium, **settings))
        return made[-1]

    yield make
    for each in made:
        each.server.close()
        each.online.close()


@pytest.fixture(scope="module")
def pairs(example):
    """The recorded pairs twice; the second time each twelve are another order of encodes."""
    order = np.random.default_rng(0).permutation(208)
    again = (12 * order[:, None] + np.arange(12)).ravel()
    both = np.concatenate([np.arange(len(example.features)), again])
    return [(example.features[place], example.true_score[place]) for place in both]


def test_healthy(world, pairs):
    healthy = world()
    healthy.minutes(70, pairs)
    assert healthy.first_line() == "running, and nothing is wrong"
    assert healthy.board.status.findings == ()


def test_reversed_features(world, pairs):
    wrong = world()
    wrong.minutes(30, pairs)
    wrong.minutes(40, [(x[::-1], y) for x, y in pairs[1800:]])
    line, _ = wrong.is_told("FeatureDrift")
    assert "the features do not look like those that the model was trained on" in line
    told = {each.alert.removeprefix("VmafxTraining"): each.detail for each in wrong.board.status.findings if each.firing}
    assert "most likely their order" in told["FeaturesShifted"]


def test_one_broken_feature(world, pairs):
    def broken(x):
        return np.where(np.arange(80) == 17, 0, x)

    wrong = world()
    wrong.minutes(30, pairs)
    wrong.minutes(40, [(broken(x), y) for x, y in pairs[1800:]])
    line, detail = wrong.is_told("FeaturesShifted")
    assert detail == "features[17]"
    assert line == "running, but features are not distributed as they were (1): features[17]"


def test_noise_in_the_scores(world, pairs):
    rng = np.random.default_rng(0)
    wrong = world()
    wrong.minutes(20, pairs)
    wrong.minutes(40, [(x, rng.uniform(0, 100) if rng.random() < 0.4 else y) for x, y in pairs[1200:]])
    line, detail = wrong.is_told("Inaccurate")
    assert "predictions are far off" in line
    assert "of a constant" in detail


def test_a_learning_rate_that_is_too_high(world, pairs):
    wrong = world(learning_rate=0.1)
    wrong.minutes(30, pairs)
    assert "went back to earlier ones" in wrong.is_told("Diverged")[0]


def test_no_pairs_for_an_hour(world, pairs):
    idle = world()
    idle.minutes(10, pairs)
    idle.minutes(61)
    line, detail = idle.is_told("NoPairs")
    assert (line, detail) == ("running, but no pairs arrive: connections: 1", "connections: 1")


def test_a_full_disk(world, pairs):
    full = world()
    full.minutes(10, pairs)
    full.online.journal.error = "no space left on device"
    full.minutes(2)
    line, _ = full.is_told("Paused")
    assert line == "paused: pairs are refused, because the journal cannot be written: journal: no space left on device"


def test_a_base_model_that_cannot_be_used(world):
    failed = world()
    failed.failed = "base.onnx takes 81 features, not 80"
    failed.minutes(6)
    line, _ = failed.is_told("Failed")
    assert line.endswith("because the base model cannot be used: base.onnx takes 81 features, not 80")


def test_unstable_checkpoints_in_a_row(world, pairs):
    unstable = world()
    for count in range(4):
        unstable.others = {"checkpoints": {"unstable": count}, "checkpoint_reason": "PLCC 0.5 is under 0.9"}
        unstable.minutes(5, pairs[300 * count :])
    line, detail = unstable.is_told("Unstable")
    assert line == f"running, but three or more checkpoints failed the gate, and none passed: {detail}"


def test_a_lost_sidecar(world, pairs):
    lost = world()
    lost.minutes(5, pairs)
    assert lost.first_line() == "running, and nothing is wrong"
    lost.server.close()
    wait_until(lambda: lost.page.ask("document.querySelector('#lost').checkVisibility()"), "the loss")
    said = lost.page.ask("document.querySelector('#lost').innerText")
    assert said.startswith("The sidecar does not answer")
    assert DOWN.do.replace("`", "") in said.replace("`", "")
    assert lost.page.ask("document.querySelector('#lost').getBoundingClientRect().top") < 200
