"""Recorded pairs in all their forms, good and bad."""

from __future__ import annotations

import gzip
import io
import json
import os
import sys
import tracemalloc
import zipfile

import numpy as np
import pytest

from sidecar.journal.blocks import RUN
from sidecar.journal.run import Run
from sidecar.learning.training_settings import TrainingSettings
from sidecar.pairs.errors import RecordedPairsError
from sidecar.pairs.holdout import holdout_position
from sidecar.pairs.recorded import read_pairs
from sidecar.pairs.tables import npz
from sidecar.pairs.tables.forms import open_table
from sidecar.pairs.tables.table import Wanted
from tests.journals import write_journal


def write_npz(path, **arrays):
    np.savez(path, **arrays)
    return path


def write_csv(path, features, scores):
    header = ",".join([*(f"f{i}" for i in range(features.shape[1])), "true_score"])
    lines = [",".join(map(repr, [*map(float, x), float(y)])) for x, y in zip(features, scores, strict=True)]
    path.write_text("\n".join([header, *lines]) + "\n")
    return path


@pytest.fixture
def rows(random_rows):
    return random_rows(20_000, 3)


def test_all_forms_give_the_same_pairs(rows, tmp_path, write_lines, monkeypatch):
    features = np.array([row["features"] for row in rows])
    scores = np.array([row["true_score"] for row in rows])
    lines = write_lines(rows)
    data = lines.read_bytes()
    middle = len(rows) // 2
    zipped = tmp_path / "pairs.jsonl.gz"
    zipped.write_bytes(gzip.compress(data[:-1]))  # no newline at the end
    texts = data.splitlines()
    segments = {
        "000000000000.jsonl.gz": [b'#run {"run": 1}', *texts[:middle], b"#gone", b"#lost"],
        f"{middle + 2:012d}.jsonl": texts[middle:],
    }
    state = write_journal(tmp_path / "state", segments, torn=texts[0])
    named = {"group": np.array([r["group"] for r in rows]), "job_id": np.array([r["job_id"] for r in rows])}
    paths = {
        "jsonl": lines,
        "jsonl.gz": zipped,
        "state": state,
        "npz": write_npz(tmp_path / "pairs.npz", features=features, true_score=scores, **named),
        "fortran": write_npz(tmp_path / "f.npz", features=np.asfortranarray(features), true_score=scores, **named),
        "csv": write_csv(tmp_path / "pairs.csv", features, scores),
        "stdin": "-",
    }
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"\n  \n" + data)))
    for form, path in paths.items():
        pairs = read_pairs([path], features=["f0", "f1", "f2"] if form == "csv" else ())
        assert np.array_equal(pairs.features, features.astype(np.float32)), form
        assert np.array_equal(pairs.true_score, scores.astype(np.float32)), form
        if form != "csv":  # which carries no group
            assert pairs.position.tolist() == [holdout_position(row["group"], row["job_id"], b"") for row in rows], form


def test_arrays_that_are_stored_by_columns_are_not_held_in_memory(tmp_path, monkeypatch):
    features = np.asfortranarray(np.random.default_rng(0).random((200_000, 20)))
    path = write_npz(tmp_path / "f.npz", features=features, true_score=np.ones(len(features)))
    monkeypatch.setattr(npz, "_IN_MEMORY_BYTES", 1 << 20)
    tracemalloc.start()
    try:
        count = 0
        with open_table(str(path)) as table:
            for block in table.read(Wanted((), "true_score")):
                assert np.array_equal(block.values[:, :-1], features[count : count + len(block.values)])
                count += len(block.values)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert count == len(features)
    assert peak < features.nbytes / 3  # it is a sixth


def test_several_files_are_joined_in_order(random_rows, write_lines):
    rows = random_rows(30)
    paths = [write_lines(rows[:10], "a.jsonl"), write_lines(rows[10:], "b.jsonl")]
    assert np.allclose(read_pairs(paths).true_score, [row["true_score"] for row in rows])
    assert len(read_pairs([paths[1], paths[1]])) == 40


def test_group_by_any_field(random_rows, write_lines, tmp_path):
    rows = random_rows(8)
    for i, row in enumerate(rows):
        row.update(crf=20 + i // 4, label="x", name=f"n{i % 2}")
    path = write_lines(rows)
    for field, names in (("crf", ["20", "21"]), ("label", ["x"]), ("name", ["n0", "n1"]), ("group", ["g0", "g1"])):
        pairs = read_pairs([path], group_by=field)
        assert pairs.group_names == names
        assert [pairs.group_names[i] for i in pairs.group] == [str(row[field]) for row in rows]
    for row in rows:
        del row["group"]
    assert len(read_pairs([write_lines(rows)], group_by="group").group_names) == 8  # the job stands for it
    archive = write_npz(tmp_path / "a.npz", features=np.ones((4, 2)), true_score=np.ones(4), source=np.array(list("aabb")))
    assert read_pairs([archive], group_by="source").group.tolist() == [0, 0, 1, 1]


GOOD = b'{"features":[1,2],"true_score":5}'


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        (b'{"features":[1],"true_score":5}', "features: expected 2 numbers, got 1"),
        (b'{"features":[1,Infinity],"true_score":5}', "features[1]: inf does not fit float32; expected a finite number"),
        (b'{"features":[1,1e39],"true_score":5}', "features[1]: 1e+39 does not fit float32"),
        (b'{"features":[1,true],"true_score":5}', "features[1]: expected a number, got bool"),
        (b'{"features":[1,"2"],"true_score":5}', "features[1]: expected a number, got the text '2'"),
        (b'{"features":{"vif":1},"true_score":5}', "features: expected array, got dict"),
        (b'{"features":[1,2],"true_score":100.0001}', "true_score: 100.0001 is outside 0 to 100"),
        (b'{"features":[1,2],"true_score":101}', "true_score: 101 is outside 0 to 100"),
        (b"\x00\x01\xff", "not JSON: invalid character at byte 0"),
    ],
)
def test_a_bad_row_stops_with_file_line_and_reason_or_is_skipped_and_counted(bad, reason, write_lines):
    path = write_lines([GOOD, b"", bad, GOOD])
    with pytest.raises(RecordedPairsError) as stopped:
        read_pairs([path])
    assert str(stopped.value).startswith(f"{path}: line 3: {reason}")
    pairs = read_pairs([path], skip_bad=True)
    assert (len(pairs), pairs.skipped) == (2, 1)
    assert pairs.first_skipped == str(stopped.value)
    assert pairs.skips == [f"{path}: 1 of 3 rows skipped: 1 wrong, the first: {stopped.value}"]


@pytest.mark.parametrize(
    "line",
    [
        b'{"features":[1,NaN],"true_score":5}',
        b'{"features":[1,null],"true_score":5}',
        b'{"features":null,"true_score":5}',
        b'{"true_score":5}',
        b'{"features":[1,2]}',
        b'{"features":[1,2],"true_score":NaN}',
    ],
)
def test_a_row_with_a_missing_value_is_skipped_and_counted(line, write_lines):
    path = write_lines([GOOD, line, GOOD])
    pairs = read_pairs([path])
    assert (len(pairs), pairs.skipped) == (2, 1)
    assert pairs.skips[0].startswith(f"{path}: 1 of 3 rows skipped: 1 with a missing value, the first: line 2 (")


def test_a_missing_group_field_is_a_bad_row(write_lines):
    path = write_lines([b'{"features":[1,2],"true_score":5,"source":["a"]}', GOOD])
    with pytest.raises(RecordedPairsError, match="line 1: source: expected text or a number, got list"):
        read_pairs([path], group_by="source")
    with pytest.raises(RecordedPairsError, match="no column 'codec' to group by; columns: true_score, source"):
        read_pairs([path], group_by="codec")
    path = write_lines([b'{"features":[1,2],"true_score":5,"source":"a"}', GOOD])
    with pytest.raises(RecordedPairsError, match="line 2: source: missing, but the pairs are to be grouped by it"):
        read_pairs([path], group_by="source")


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("empty.jsonl", b"", "no pairs"),
        ("blank.jsonl", b"\n\n", "no pairs"),
        ("empty.jsonl.gz", b"", "no pairs"),
        ("cut.jsonl.gz", gzip.compress(GOOD * 1000)[:-20], "damaged or truncated gzip"),
        ("no.jsonl.gz", b"x", "line 1: not JSON"),
        ("endless.jsonl", b"[" * (3 << 20), "line 1: longer than 1048576 bytes"),
        ("junk.npz", os.urandom(2000), "not a numpy .npz archive"),
        ("empty.npz", b"", "not a numpy .npz archive"),
        ("empty.csv", b"", "no pairs"),
        ("header.csv", b"a,b\n1,2\n", "no column is named like a feature of libvmaf"),
        ("headless.csv", b"1,2\n3,4\n", "no header: the first line has numbers"),
        ("ragged.csv", b"vif,true_score\n1,2\n1,2,3\n", "line 3: expected 2 columns, got 3"),
        ("text.csv", b"vif,true_score\nx,2\n", "line 2: vif: expected a number, got 'x'"),
        ("nan.csv", b"vif,true_score\n1,nan\n", "1 with a missing value, the first: line 2 (true_score)"),
        ("void.csv", b"vif,true_score\n,2\n", "every feature is missing in every row: vif"),
        ("binary.csv", b"vif,true_score\n\xff\xfe,2\n", "not CSV text"),
        ("quote.csv", b'vif,true_score\n"1,2\n', "not CSV text"),
        ("mac.csv", b"vif,true_score\r1,2\r", "lines end with a carriage return alone; expected line feeds"),
        ("long.csv", b"vif," + b"x" * 200_000 + b"\n1,2\n", "not CSV text: in the names of the columns, field larger than"),
        ("twice.jsonl", b'{"vif":1,"vif":2,"vmaf":3}\n', "line 1: named more than once: vif"),
        ("in.jsonl", b'{"features":{"vif":1,"vif":2},"true_score":3}\n', "line 1: named more than once: vif"),
        ("half.jsonl", b'{"vif":1,"vmaf":3,"group":"\\ud800"}\n', "line 1: not JSON: "),
        ("only.csv", b"true_score\n1\n", "no column is named like a feature of libvmaf"),
        ("none.jsonl", b'{"features":[],"true_score":1}\n', "line 1: features: expected at least one number, got 0"),
        ("pairs.parquet", b"PAR1", "damaged or truncated parquet"),
    ],
)
def test_bad_files(name, data, message, tmp_path):
    (tmp_path / name).write_bytes(data)
    with pytest.raises(RecordedPairsError) as refused:
        read_pairs([tmp_path / name])
    assert str(tmp_path / name) in str(refused.value)
    assert message in str(refused.value)


@pytest.mark.parametrize("nan", ["NaN", "nan", "-nan"])
def test_a_bare_nan_is_a_missing_value_in_a_file_that_is_one_object(nan, tmp_path):
    metrics = ['{"vif": 1, "vmaf": 5}', '{"vif": NAN, "vmaf": 5}', '{"vif": 3, "vmaf": 5, "psnr_y": NAN}']
    frames = ", ".join(f'{{"frameNum": {place}, "metrics": {each}}}' for place, each in enumerate(metrics))
    log, cache = tmp_path / "log.json", tmp_path / "cache.json"
    log.write_text(f'{{"version": "a, NaN", "frames": [{frames}]}}'.replace("NAN", nan))
    cache.write_text(f'{{"feature_names": ["vif"], "per_frame": [[1], [{nan}], [3]], "teacher_per_frame": [5, 5,{nan}]}}')
    assert read_pairs([log], features=["vif"]).features.tolist() == [[1], [3]]
    assert read_pairs([cache]).features.tolist() == [[1]]


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"features": np.ones((3, 2))}, "no score: no column true_score"),
        ({"features": np.ones((3, 2)), "true_score": np.ones(2)}, "true_score has 2 rows, but features has 3"),
        ({"features": np.ones(3), "true_score": np.ones(3)}, "features is float64 of shape (3,)"),
        ({"features": np.ones((3, 2), bool), "true_score": np.ones(3)}, "features is bool"),
        ({"features": np.full((3, 2), "1"), "true_score": np.ones(3)}, "features is <U1"),
        (
            {"features": np.array([[3, np.nan]]), "true_score": np.ones(1)},
            "1 with a missing value, the first: row 1 (features[1])",
        ),
        ({"features": np.array([[1, 1e39]]), "true_score": np.ones(1)}, "row 1: features[1]: 1e+39 does not fit float32"),
        ({"features": np.ones((2, 1)), "true_score": np.array([1, -0.5])}, "row 2: true_score: -0.5 is outside 0 to 100"),
        ({"features": np.ones((0, 2)), "true_score": np.ones(0)}, "no pairs"),
        ({"features": np.ones((1, 2)), "true_score": np.ones(1), "group": np.array(["\ud800"])}, "surrogates not allowed"),
        ({"features": np.ones((1, 1)), "true_score": np.ones(1), "names": np.array(["\ud800"])}, "surrogates not allowed"),
        ({"features": np.array([[object()]]), "true_score": np.ones(1)}, "features is object"),
    ],
)
def test_bad_archives(arrays, message, tmp_path):
    with pytest.raises(RecordedPairsError) as refused:
        read_pairs([write_npz(tmp_path / "pairs.npz", **arrays)])
    assert message in str(refused.value)


def test_what_is_no_array_is_passed_over_in_an_archive(tmp_path):
    path = write_npz(tmp_path / "pairs.npz", features=np.ones((3, 2)))
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("group", "no array")
        archive.writestr("true_score", "no array")
    with pytest.raises(RecordedPairsError, match="no score: no column true_score"):
        read_pairs([path])
    with zipfile.ZipFile(path, "a") as archive, archive.open("true_score.npy", "w") as member:
        np.save(member, np.ones(3))
    assert len(read_pairs([path])) == 3


def test_an_archive_that_was_cut_off(tmp_path):
    path = write_npz(tmp_path / "pairs.npz", features=np.ones((3000, 2)), true_score=np.ones(3000))
    path.write_bytes(path.read_bytes()[:-500])
    with pytest.raises(RecordedPairsError, match=r"not a numpy \.npz archive"):
        read_pairs([path])


def test_another_width_in_a_later_file_is_told(write_lines, tmp_path):
    first = write_lines([GOOD])
    wide = np.ones((2, 3))
    for other in (
        write_npz(tmp_path / "wide.npz", features=wide, true_score=np.ones(2)),
        write_csv(tmp_path / "wide.csv", wide, np.ones(2)),
    ):
        with pytest.raises(RecordedPairsError, match=r"features: expected (2 numbers, got 3|3 .f0, f1, f2., got 2)"):
            read_pairs([first, other], features=["f0", "f1", "f2"] if other.suffix == ".csv" else ())


def test_paths_that_cannot_be_read(tmp_path):
    with pytest.raises(RecordedPairsError, match=r"nowhere\.jsonl: No such file"):
        read_pairs([tmp_path / "nowhere.jsonl"])
    with pytest.raises(RecordedPairsError, match="nowhere: No such file or directory"):
        read_pairs([tmp_path / "nowhere"])
    with pytest.raises(RecordedPairsError, match="a directory without a journal"):
        read_pairs([tmp_path])


def test_only_bad_rows(write_lines):
    with pytest.raises(RecordedPairsError, match=r"line 1: not JSON"):
        read_pairs([write_lines([b"x", b"y"])], skip_bad=True)


def test_each_pair_of_a_journal_is_read_in_the_order_of_the_run_before_it(tmp_path):
    def run(*features: str) -> bytes:
        return RUN + json.dumps(Run(2, TrainingSettings(), 0.1, features=features, order=("a", "b")).as_json()).encode()

    ab, ba = (json.dumps({"job_id": "j", "features": each, "true_score": 5}).encode() for each in ([1, 2], [2, 1]))
    segments = {
        "000000000000.jsonl.gz": [run("a", "b"), ab, ab, run("b", "a"), ba],
        "000000000003.jsonl": [run("a", "b"), ab, b"{}", run("b", "a"), b"{}", ba],
    }
    pairs = read_pairs([write_journal(tmp_path / "state", segments)], skip_bad=True)
    assert pairs.features.tolist() == [[1, 2]] * 5
    assert pairs.skipped == 2


def test_of_a_segment_that_stands_plain_and_gzipped_the_plain_one_counts(tmp_path, random_rows):
    state = write_journal(tmp_path / "s", {"000000000000.jsonl": [json.dumps(row).encode() for row in random_rows(5)]})
    (state / "journal" / "000000000000.jsonl.gz").write_bytes(b"half")
    (state / "journal" / "notes.txt").write_bytes(b"x")
    assert len(read_pairs([state])) == 5
