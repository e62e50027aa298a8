"""Where a sidecar starts from, with a state of another make."""

from __future__ import annotations

import gzip

import pytest

from sidecar.journal.run import Run
from sidecar.journal.segments import is_before_blocks, journal_segments
from sidecar.learning.training_settings import TrainingSettings
from sidecar.online.start import where_to_start
from sidecar.online.training import OnlineTraining
from sidecar.settings import Settings

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
