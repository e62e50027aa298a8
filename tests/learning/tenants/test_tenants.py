"""Tenants in training: any pieces of a stream give the same state, and tenants do each other no harm."""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import pytest

from onnx_builder.network import Clip
from sidecar.learning.metrics import rmse
from sidecar.learning.online.trainer import Trainer
from sidecar.learning.recipe import Recipe, fit
from sidecar.learning.tenants.tenants import Tenants
from sidecar.learning.training_settings import TrainingSettings
from sidecar.settings import MOST_TENANTS

SETTINGS = TrainingSettings(tenants=("*",))
MADE = {
    "a": lambda scores: scores + 3,
    "b": lambda scores: scores - 3,
    "c": lambda scores: 100 * (scores / 100) ** 1.15,
    "d": lambda scores: 0.8 * scores + 10,
}


@pytest.fixture(scope="module")
def base(example):
    return fit(example.features, example.true_score, np.arange(0, 2000, 3), Recipe(epochs=100)).ema.network()


def stream(example, count):
    """Pairs whose encodes belong to four tenants in turn, each with another meaning of the score."""
    names = ["abcd"[row // 12 % 4] for row in range(count)]
    scores = [MADE[name](score) for name, score in zip(names, example.true_score[:count], strict=True)]
    return example.features[:count], np.clip(scores, 0, 100), names


def fed(base, pairs, pieces, settings=SETTINGS):
    trainer, tenants = Trainer(80, settings, base), Tenants(80, settings)
    groups = []
    for start, stop in itertools.pairwise(pieces):
        groups += tenants.add(trainer, *(column[start:stop] for column in pairs), finish=start % 2 == 0)
    return trainer, tenants, groups


def network(trainer, tenants, name):
    return next(model.network() for model in tenants.models(trainer) if model.name == name)


def states(trainer, tenants):
    return {**tenants.state(trainer), **trainer.state()}


def assert_equal(one, other):
    assert one.keys() == other.keys()
    assert [name for name in one if not np.array_equal(one[name], other[name])] == []


@pytest.mark.parametrize("with_base", [True, False])
def test_it_does_not_matter_how_many_pairs_come_at_once(example, base, with_base):
    pairs = stream(example, 700)
    settings = replace(SETTINGS, batch_size=40, tenant_rank=2)  # 20 new pairs complete a group
    at_once, *_ = expected = fed(base if with_base else None, pairs, [0, 700], settings)
    in_pieces = fed(base if with_base else None, pairs, [0, *range(1, 400, 13), 509, 510, 511, 700], settings)
    assert at_once.trained > 256
    assert_equal(states(*expected[:2]), states(*in_pieces[:2]))
    steps = [group.step for group in expected[2]]
    assert steps == sorted(set(steps))
    assert len({group.place for group in expected[2]}) == len(steps)


@pytest.mark.parametrize("at", [100, 300, 333, 640])
def test_training_goes_on_bit_for_bit_from_a_state(example, base, at):
    features, scores, names = stream(example, 800)
    settings = replace(SETTINGS, tenant_rank=1)
    trainer, tenants, _ = fed(base, (features, scores, names), [0, at], settings)
    state = states(trainer, tenants)
    again = Trainer.from_state(80, settings, state)
    continued = Tenants(80, settings)
    continued.load(state, again)
    for pair in ((trainer, tenants), (again, continued)):
        pair[1].add(pair[0], features[at:], scores[at:], names[at:])
    assert_equal(states(trainer, tenants), states(again, continued))


def test_tenants_whose_scores_contradict_each_other_have_right_heads_and_an_unspoilt_trunk(example, base):
    features, scores, names = stream(example, 1600)
    trainer, tenants, _ = fed(base, (features, scores, names), [0, 1600])
    plain = Trainer(80, TrainingSettings(), base)
    plain.add(features, scores)
    unseen, true = example.features[2000:], example.true_score[2000:]
    for name, made in MADE.items():
        expected = np.clip(made(true), 0, 100)
        own = rmse(np.clip(network(trainer, tenants, name).forward(unseen), 0, 100), expected)
        shared = rmse(np.clip(plain.network(plain.ema).forward(unseen), 0, 100), expected)
        assert tenants.figures()[name].compared.used
        assert own < 0.6 * shared


def test_pairs_of_no_tenant_train_as_without_tenants(example, base):
    features, scores, _ = stream(example, 640)
    trainer, tenants, groups = fed(base, (features, scores, [""] * 640), [0, 640])
    plain = Trainer(80, SETTINGS, base)
    places = [127, 255, 367, 495, 511, 639]  # rounds of 128, but that fits begin after 363 and 512 pairs
    assert [group for group in plain.add(features, scores) if group.place in places] == groups
    assert_equal(plain.state(), trainer.state())
    assert not tenants.numbers


@pytest.mark.usefixtures("quick_fits")
def test_outliers_are_left_out_as_without_tenants(example, base):
    """Also after 2,048 pairs, from when on the trainer does not look for them again."""
    rows = np.arange(2700) % len(example.features)
    features, scores = example.features[rows], example.true_score[rows]
    features[[100, 2300, 2301, 2400], :40] = 1e6
    trainer, tenants, _ = fed(base, (features, scores, [""] * 2700), [0, 2700])
    plain = Trainer(80, SETTINGS, base)
    taken = 2700 - len(tenants.continued(SETTINGS)[2])
    plain.add(features[:taken], scores[:taken])
    assert trainer.outliers.came == 4
    assert_equal(plain.state(), trainer.state())


def test_tenants_that_are_not_allowed_train_the_shared_weights_alone(example, base):
    features, scores, names = stream(example, 160)
    trainer, tenants, _ = fed(base, (features, scores, names), [0, 160], replace(SETTINGS, tenants=("b", "e")))
    assert [*tenants.numbers] == ["b"]
    assert tenants.refused == sum(name != "b" for name in names)
    assert trainer.trained == tenants.refused // 16 * 16  # the others' wait


def test_there_are_at_most_so_many_tenants(example, base):
    features, scores, _ = stream(example, 400)
    _, tenants, _ = fed(base, (features, scores, [f"t{number}" for number in range(400)]), [0, 400])
    assert len(tenants.numbers) == MOST_TENANTS
    assert tenants.refused == 400 - MOST_TENANTS


def test_what_one_tenant_sends_does_not_touch_the_head_of_another_and_the_trunk_no_more_than_its_share(example, base):
    features, scores, _ = stream(example, 480)
    settings = replace(SETTINGS, steps_per_batch=16, tenant_share=0.25)  # 248 of 992 pairs
    names = ["good" if row % 4 == 0 else "liar" for row in range(480)]
    scores = np.where([name == "liar" for name in names], scores + 5, scores)
    trainer, tenants, _ = fed(base, (features, scores, names), [0, 480], settings)
    assert tenants.passed == 360 - 248
    rows = tenants.rows("good")
    assert np.array_equal(rows[:, -1], scores[::4].astype(np.float32))
    assert not trainer.replay.added - 248 > 120


def test_scores_that_nothing_explains_do_not_train_the_shared_weights(example, base):
    features, scores, _ = stream(example, 480)
    names = ["good" if row % 4 == 0 else "noise" for row in range(480)]
    noise = np.random.default_rng(0).uniform(0, 100, 480)
    scores = np.where([name == "noise" for name in names], noise, scores)
    trainer, tenants, _ = fed(base, (features, scores, names), [0, 480])
    assert (trainer.trained, tenants.passed) == (112, 360)
    trainer, tenants, _ = fed(base, (features, noise, ["noise"] * 480), [0, 480])  # nothing says that the weights are right
    assert (trainer.trained, tenants.passed) == (368, 0)  # the others wait for a round


def test_tenants_that_do_not_differ_train_the_shared_weights_as_without_tenants(example, base):
    features, names = example.features[:320], ["abcd"[row // 12 % 4] for row in range(320)]
    scores = base.forward(features) + np.random.default_rng(0).normal(0, 0.2, 320)
    trainer, tenants, groups = fed(base, (features, scores, names), [0, 320])
    plain = Trainer(80, SETTINGS, base)
    assert plain.add(features, scores) == groups
    assert_equal(plain.state(), trainer.state())
    assert not any(figures.compared.used for figures in tenants.figures().values())


def test_a_head_is_in_use_from_the_fiftieth_pair_on_though_its_round_is_not_complete(example, base):
    features, scores = example.features[:50], example.true_score[:50] + 5
    trainer, tenants, _ = fed(base, (features, scores, ["a"] * 50), [0, 50])
    assert tenants.figures()["a"].compared.pairs == 48
    (model,) = tenants.models(trainer)
    assert (model.compared.pairs, model.compared.used, model.pairs) == (50, True, 50)
    assert tenants.figures()["a"].compared.pairs == 48


@pytest.mark.parametrize("changed", [("a", "c"), None])
def test_with_other_tenants_those_that_stay_go_on_and_no_pair_is_lost(example, base, changed):
    pairs = stream(example, 234)  # fewer than 64 of each tenant, and ten that wait
    trainer, tenants, _ = fed(base, pairs, [0, 234])
    settings = replace(SETTINGS, tenants=changed)
    continued, rows, names = tenants.continued(settings)
    stay = [*changed] if changed else []
    assert [*continued.numbers] == stay
    held = sum(figures.held for figures in continued.figures().values())
    assert trainer.trained + (16 - trainer.missing) + len(rows) + held == 234
    assert len(rows) == len(names)


def test_features_that_overflow_harm_no_head(example, base):
    """They come before anybody knows what is usual; a base model does not clip them."""
    unclipped = replace(base, steps=tuple(step for step in base.steps[:-1] if not isinstance(step, Clip)) + base.steps[-1:])
    features, scores, names = stream(example, 600)
    features = features.copy()
    features[:50:7] = 3e38
    trainer, tenants, _ = fed(unclipped, (features, scores, names), [0, 600], replace(SETTINGS, tenant_rank=2))
    for model in tenants.models(trainer):
        predicted = model.network().forward(example.features)
        assert np.isfinite(predicted).all()
        assert model.compared.pairs > 100
    assert np.isfinite(trainer.replay.rows()).all()


@pytest.mark.parametrize("whose", ["", "abcd"])
def test_a_fit_begins_with_the_last_group_of_a_round_and_holds_up_no_pair(example, base, whose):
    features, scores, names = stream(example, 1200)
    names = names if whose else [""] * 1200
    trainer, tenants, pending = Trainer(80, SETTINGS, base), Tenants(80, SETTINGS), 0
    for at in range(1200):
        pair = slice(at, at + 1)
        had_one = trainer.fit
        tenants.add(trainer, features[pair], scores[pair], names[pair], finish=False)
        if trainer.fit is not None and trainer.fit is not had_one:
            pending += 1
            trainer.finish()
    assert pending == sum(trainer.refits.values()) == 5  # after 256, 363, 512, 725 and 1,024 pairs


def test_a_round_that_waits_ends_where_it_would_have_ended_though_the_base_model_is_another(example, base):
    features, scores, _ = stream(example, 400)
    trainer, tenants, _ = fed(base, (features, scores, [""] * 400), [0, 352])  # 16 more, and a fit would begin
    other = trainer.begun_anew(SETTINGS, base)
    again = Tenants(80, SETTINGS)
    again.load(tenants.state(other), other)
    assert again.add(other, features[352:368], scores[352:368], [""] * 16)
