"""`forget`: what is left is as if the pairs had never come, in the journal, the anchor, and all that is trained from it."""

from __future__ import annotations

import json

import numpy as np
import pytest
from msgspec import UNSET

import sidecar.journal.writer as journal_module
import sidecar.state.forget as forget_module
from sidecar.journal.retention import compress_closed
from sidecar.journal.run import Run
from sidecar.journal.segments import JournalError, journal_segments, read_journal
from sidecar.learning.training_settings import TrainingSettings
from sidecar.online.training import OnlineTraining
from sidecar.pairs.holdout import holdout_position
from sidecar.state.anchor import read_anchor, write_anchor
from sidecar.state.base_models import digest_of
from sidecar.state.directory import StateError
from sidecar.state.forget import forget
from sidecar.state.snapshots import snapshots
from tests.conftest import run


@pytest.fixture(scope="module")
def lines(example):
    """Groups of twelve; every fifth group has none, so that its job_ids stand for it."""
    pairs = zip(example.features[:600].tolist(), example.true_score[:600].tolist(), strict=True)
    return [
        json.dumps(
            {
                "job_id": f"j{i}",
                **({"group": f"g{i // 12}"} if i // 12 % 5 else {}),
                "features": x,
                "true_score": y,
                "tenant": "abc"[i // 12 % 3],
            }
        ).encode()
        for i, (x, y) in enumerate(pairs)
    ]


@pytest.fixture(scope="module")
def more(lines):
    """Pairs that come after `forget`."""
    return [line.replace(b'"j', b'"more-j') for line in lines[100:160]]


@pytest.fixture
def train(tmp_path, base):
    """Trains on lines in a directory; gives the state's arrays."""

    def go(name, lines, snapshot_every=150, settings=None):
        online = OnlineTraining(tmp_path / name, Run(80, settings or TrainingSettings(), 0.2, digest_of(base)), base)
        for start in range(0, len(lines), snapshot_every):
            online.accept(lines[start : start + snapshot_every])
            online.snapshot()()
        state = online.learner.state()
        online.close()
        return state

    return go


def assert_as_if_never_seen(found, never):
    """All but the position, which counts the forgotten ones."""
    assert found.keys() == never.keys()
    for name in found.keys() - {"run"}:
        assert np.array_equal(found[name], never[name]), name


@pytest.mark.parametrize("zipped", [False, True])
@pytest.mark.parametrize("groups", [["g1"], ["g27", "g3"], ["j61"], ["g49"]])
def test_what_is_left_trains_as_if_the_pairs_had_never_come(tmp_path, train, lines, more, groups, zipped, monkeypatch):
    monkeypatch.setattr(journal_module, "SEGMENT_BYTES", 150_000)
    train("state", lines)
    if zipped:
        compress_closed(tmp_path / "state", 0)
        assert journal_segments(tmp_path / "state")[0].suffix == ".gz"

    def is_theirs(line):
        pair = json.loads(line)
        return pair.get("group", pair["job_id"]) in groups

    expected = [position for position, line in enumerate(lines) if is_theirs(line)]
    done = forget(groups, tmp_path / "state")
    assert sum(done.pairs.values()) == len(expected) > 0
    assert done.first == expected[0]
    assert all(position < expected[0] for position, _ in snapshots(tmp_path / "state"))
    entries = [entry for entry in read_journal(tmp_path / "state") if entry.run is None]
    assert [entry.position for entry in entries if entry.line is None] == expected
    assert [entry.line for entry in entries if entry.line is not None] == [line for line in lines if not is_theirs(line)]
    never = train("never", [line for line in lines if not is_theirs(line)])
    assert_as_if_never_seen(train("state", more), train("never", more))
    assert never["counts"][1] > 300


def test_without_a_tenants_pairs_it_is_as_if_the_tenant_had_never_been_there(tmp_path, train, lines, more):
    settings = TrainingSettings(tenants=("*",), tenant_rank=1)
    train("state", lines, settings=settings)
    rows = np.column_stack([np.zeros((3, 81)), [holdout_position("g1", "", b""), holdout_position("g2", "", b""), 0.5]])
    write_anchor(tmp_path / "state", rows)
    done = forget(["b"], tmp_path / "state", of_tenants=True)
    assert done.pairs == {"b": sum(json.loads(line)["tenant"] == "b" for line in lines)}
    assert (done.first, done.anchor) == (12, 1)
    others = [[line for line in each if json.loads(line)["tenant"] != "b"] for each in (lines, more)]
    never = train("never", others[0], settings=settings)
    assert_as_if_never_seen(train("state", others[1], settings=settings), train("never", others[1], settings=settings))
    assert json.loads(never["tenants"].tobytes())["names"] == ["a", "c"]


def test_a_tenants_pairs_without_a_name_take_the_whole_anchor_with_them(tmp_path, train, lines):
    pair = json.loads(lines[0])
    del pair["job_id"]
    train("state", [json.dumps(pair).encode(), *lines[12:60]])
    write_anchor(tmp_path / "state", np.zeros((3, 82)))
    assert forget(["a"], tmp_path / "state", of_tenants=True).anchor == 3


def test_a_forgotten_pair_that_comes_again_is_no_duplicate(tmp_path, train, lines, base):
    train("state", lines[:60])
    forget(["g1"], tmp_path / "state")
    online = OnlineTraining(tmp_path / "state", Run(80, TrainingSettings(), 0.2, digest_of(base)), base)
    again, kept = online.accept([lines[12], lines[24]])
    online.close()
    assert again.duplicate is UNSET
    assert kept.duplicate is True


def test_the_anchor_loses_them_too_even_where_the_journal_has_not_got_them_any_more(tmp_path, train, lines):
    held_out = train("state", lines)["held_out"]
    write_anchor(tmp_path / "state", held_out)
    positions = {forget_module.holdout_position(f"g{number}", "", b""): f"g{number}" for number in range(50)}
    group = next(positions[at] for at in held_out[:, -1].tolist() if at in positions)
    theirs = sum(positions.get(at) == group for at in held_out[:, -1].tolist())
    forget([group], tmp_path / "state")
    assert len(read_anchor(tmp_path / "state")) == len(held_out) - theirs
    write_anchor(tmp_path / "state", held_out)
    done = forget([group], tmp_path / "state")
    assert done.pairs == {group: 0}
    assert done.anchor == theirs
    assert len(read_anchor(tmp_path / "state")) == len(held_out) - theirs


def test_killed_in_the_middle_it_is_finished_by_running_it_again(tmp_path, train, lines, more, monkeypatch):
    monkeypatch.setattr(journal_module, "SEGMENT_BYTES", 20_000)
    spread = [
        line.replace(b'"group": "g%d"' % (i // 12), b'"group": "spread"') if i % 40 == 5 else line
        for i, line in enumerate(lines)
    ]
    train("state", spread)
    real, done = forget_module.replace_segment, []

    def dies(path, blocks):
        if len(done) == 2:
            raise KeyboardInterrupt
        done.append(path)
        real(path, blocks)

    with monkeypatch.context() as patch:
        patch.setattr(forget_module, "replace_segment", dies)
        with pytest.raises(KeyboardInterrupt):
            forget(["spread"], tmp_path / "state")
    assert snapshots(tmp_path / "state") == []
    left = forget(["spread"], tmp_path / "state")
    assert left.pairs["spread"] > 0
    kept = [line for line in spread if b'"spread"' not in line]
    assert [entry.line for entry in read_journal(tmp_path / "state") if entry.line is not None] == kept
    train("never", kept)
    assert_as_if_never_seen(train("state", more), train("never", more))


def test_where_the_beginning_is_gone_training_begins_with_what_is_left(tmp_path, train, lines, more, monkeypatch, caplog):
    monkeypatch.setattr(journal_module, "SEGMENT_BYTES", 150_000)
    train("state", lines)
    journal_segments(tmp_path / "state")[0].unlink()
    kept_from = int(journal_segments(tmp_path / "state")[0].name[:12])
    number = next(n for n in range(kept_from // 12 + 1, 50) if n % 5)
    done = forget([f"g{number}"], tmp_path / "state")
    assert done.from_position == kept_from
    assert snapshots(tmp_path / "state") == []
    rest = [line for line in lines[kept_from:] if f'"g{number}"'.encode() not in line]
    train("never", rest)
    assert_as_if_never_seen(train("state", more), train("never", more))
    assert f"training begins anew with position {kept_from}" in caplog.text


def test_what_cannot_be_forgotten_is_told(tmp_path, train, lines, base):
    with pytest.raises(StateError, match="no journal; expected a sidecar's state directory"):
        forget(["g1"], tmp_path / "none")
    assert not (tmp_path / "none").exists()
    train("state", lines[:100])
    online = OnlineTraining(tmp_path / "state", Run(80, TrainingSettings(), 0.2, digest_of(base)), base)
    with pytest.raises(StateError, match="another sidecar holds this state directory"):
        forget(["g1"], tmp_path / "state")
    online.close()


def test_what_is_whole_of_a_damaged_journal_is_forgotten_and_no_file_keeps_the_pairs(tmp_path, train, lines):
    train("state", lines[:100])
    state = tmp_path / "state"
    (state / ".tmp-snapshot").write_bytes(lines[20])
    (state / "damaged").mkdir()
    (state / "damaged" / "000001-000000000000.jsonl").write_bytes(lines[20])
    path = journal_segments(state)[0]
    path.write_bytes(path.read_bytes().replace(lines[50], lines[50].replace(b"[", b"(")))
    assert forget(["g1"], state).pairs == {"g1": 12}
    assert [number for number, entry in enumerate(read_journal(state)) if entry.line is None and entry.run is None]
    left = b"".join(path.read_bytes() for path in state.rglob("*") if path.is_file())
    assert b'"g1"' not in left
    assert b'"g2"' in left


def test_what_may_be_of_the_group_in_a_damaged_segment_anchor_or_snapshot_goes_too(tmp_path, train, lines, monkeypatch):
    monkeypatch.setattr(journal_module, "SEGMENT_BYTES", 150_000)
    state = tmp_path / "state"
    held_out = train("state", lines[:600])["held_out"]
    write_anchor(state, held_out)
    for path in (state / "anchor.npy", journal_segments(state)[0]):
        data = bytearray(path.read_bytes())
        data[data.index(lines[20]) + 30 if path.suffix == ".jsonl" else 200] ^= 1
        path.write_bytes(data)
    assert snapshots(state)
    assert forget(["g1"], state).pairs["g1"] < 12
    assert snapshots(state) == []
    left = b"".join(path.read_bytes() for path in state.rglob("*") if path.is_file())
    assert b'"g1"' not in left
    assert held_out[0, :80].tobytes() not in left
    assert b'"g2"' in left


def test_what_cannot_be_read_now_is_not_taken_for_forgotten(tmp_path, train, lines, monkeypatch):
    write_anchor(tmp_path / "state", train("state", lines[:100])["held_out"])

    def fails(path, kind):
        raise OSError(5, "Input/output error", str(path))

    monkeypatch.setattr("sidecar.state.anchor.read_checked", fails)
    with pytest.raises(JournalError, match=r"anchor\.npy: Input/output error"):
        forget(["g1"], tmp_path / "state")


def test_the_command_says_what_it_did_and_which_checkpoints_had_learned(tmp_path, train, lines):
    checkpoint_dir = tmp_path / "checkpoints"
    checkpoint_dir.mkdir()
    train("checkpoints/state", lines[:100])
    state = checkpoint_dir / "state"
    for version, last in ((1, 10), (2, 50), (3, 99)):
        (checkpoint_dir / f"model_v{version:06d}.onnx").touch()
        journal = {"directory": str((state if version < 3 else tmp_path / "another").resolve()), "first": 0, "last": last}
        (checkpoint_dir / f"model_v{version:06d}.json").write_text(json.dumps({"journal": journal}))
    done = run("forget", "g2", "nobody", "--checkpoint-dir", checkpoint_dir, "--json")
    assert json.loads(done.stdout) == {
        "pairs": {"g2": 12, "nobody": 0}, "anchor": 0, "first": 24, "checkpoints": ["model_v000002"], "from_position": 0,
    }  # fmt: skip
    done = run("forget", "g3", "--checkpoint-dir", checkpoint_dir)
    assert done.returncode == 0
    assert done.stdout.splitlines() == [
        "g3: 12 pairs deleted",
        "the next start trains again on the remaining pairs, from position 0",
        "trained on deleted pairs, and no longer reproducible from the journal: model_v000002",
    ]
    done = run("forget", "g3", "--checkpoint-dir", checkpoint_dir)
    assert done.stdout == "g3: 0 pairs deleted\n"
    done = run("forget", "g3", "--state-dir", tmp_path / "none")
    assert done.returncode == 2
    assert "no journal" in done.stderr


def test_pairs_that_retention_has_removed_leave_the_snapshots_too(tmp_path, train, lines, monkeypatch):
    monkeypatch.setattr(journal_module, "SEGMENT_BYTES", 150_000)
    train("state", lines)
    journal_segments(tmp_path / "state")[0].unlink()
    assert snapshots(tmp_path / "state")
    assert forget(["g1"], tmp_path / "state").pairs == {"g1": 0}
    assert snapshots(tmp_path / "state") == []
