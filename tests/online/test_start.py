"""Where a sidecar starts from, with a state of another make."""

from __future__ import annotations

import gzip
from dataclasses import replace

import pytest

from onnx_builder.write import to_bytes
from sidecar.journal.run import Run
from sidecar.journal.segments import is_before_blocks, journal_segments
from sidecar.learning.training_settings import TrainingSettings
from sidecar.online.start import where_to_start
from sidecar.online.training import OnlineTraining
from sidecar.settings import Settings
from sidecar.state.base_models import kept_bases
from tests.conftest import run
from tests.small_states import BASE, open_as_serve_does, small_lines, small_settings

pytestmark = pytest.mark.usefixtures("quick_fits")


@pytest.fixture
def settings(tmp_path):
    return Settings(checkpoint_dir=tmp_path / "checkpoints", base_model=tmp_path / "none.onnx", n_features=80)


@pytest.fixture
def segment(settings):
    journal = settings.state / "journal"
    journal.mkdir(parents=True)
    return journal / "000000000000.jsonl"


@pytest.mark.parametrize("first", [b'#run {"n_features": 80}', None], ids=["run", "pair"])
@pytest.mark.parametrize("zipped", [False, True])
def test_a_state_of_before_blocks_is_moved_aside_and_it_begins_anew(settings, segment, lines, caplog, first, zipped):
    data = b"\n".join([*([first] if first else []), *lines[:50], b""])
    if zipped:
        segment = segment.with_name(f"{segment.name}.gz")
        data = gzip.compress(data)
    segment.write_bytes(data)
    told = f"{settings.state}: state of a format before the first release; `serve` moves it aside and begins anew\n"
    for command in (
        ["verify", settings.state],
        ["forget", "g1", "--state-dir", settings.state],
        ["train-offline", settings.state],
    ):
        done = run(*command)
        assert (done.returncode, done.stderr) == (2, f"Error: {told}")
    start = where_to_start(settings)
    (aside,) = settings.checkpoint_dir.glob("state.old-format-*")
    assert (aside / "journal" / segment.name).read_bytes() == data
    assert caplog.text.count("the state is of a format before the first release: moved aside to") == 1
    online = OnlineTraining(settings.state, start.run)
    assert online.journal.position == 0
    online.close()


@pytest.mark.parametrize("left", ["nothing", "junk", "a damaged header", "a lost beginning", "no gzip"])
def test_a_damaged_journal_is_not_taken_for_one_of_before_blocks(settings, segment, lines, left):
    online = OnlineTraining(settings.state, Run(80, TrainingSettings(), 0.05))
    for start in (0, 40, 80):
        online.accept(lines[start : start + 40])
        online.journal.roll()
    online.close()
    for path in journal_segments(settings.state)[1 if left == "a lost beginning" else 2 :]:
        path.unlink()
    whole = segment.read_bytes()
    if left == "no gzip":
        segment.unlink()
        segment.with_name(f"{segment.name}.gz").write_bytes(b"#run {")
    else:
        segment.write_bytes(
            {
                "nothing": b"",
                "junk": b"junk" * 100,
                "a damaged header": b"{" + whole[1:],
                "a lost beginning": whole[whole.index(b"{", whole.index(b"\n#run") + 10) :],
            }[left]
        )
    assert not is_before_blocks(settings.state)
    where_to_start(settings)
    assert not [*settings.checkpoint_dir.glob("state.*")]


@pytest.mark.parametrize("kept", ["whole", "damaged", "gone"])
def test_a_base_model_that_is_nowhere_else_is_taken_from_the_state_only_if_it_is_whole(tmp_path, caplog, kept):
    base_model, checkpoints = tmp_path / "base.onnx", tmp_path / "checkpoints"
    base_model.write_bytes(to_bytes(BASE))
    settings = small_settings(checkpoints, base_model)
    online = OnlineTraining(settings.state, where_to_start(settings).run, BASE)
    online.accept(small_lines(50))
    online.backlog.wait()
    online.snapshot()()
    online.close()
    before = open_as_serve_does(settings)
    base_model.unlink()
    (path,) = kept_bases(settings.state)
    if kept == "damaged":
        path.write_bytes(path.read_bytes().replace(b"score", b"scare"))
    elif kept == "gone":
        path.unlink()
    assert (where_to_start(settings).base is not None) == (kept == "whole")
    after = open_as_serve_does(settings)
    assert after.position == before.position
    assert (after.digest == before.digest) == (kept == "whole")
    assert path.exists() == (kept == "whole")
    assert [*(settings.state / "damaged").glob("*.onnx")] == (
        [settings.state / "damaged" / f"000001-{path.name}"] if kept == "damaged" else []
    )


@pytest.mark.parametrize("name", ["loop.onnx", "x" * 300])
def test_a_base_model_that_cannot_be_looked_at_is_not_taken_for_a_missing_one(settings, tmp_path, name):
    (tmp_path / "loop.onnx").symlink_to("loop.onnx")
    found = where_to_start(replace(settings, base_model=tmp_path / name))
    assert found.base is None
    assert name in found.failed
