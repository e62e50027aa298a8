"""Reading by workers: what is in the sample, and what of journals that sidecars write to meanwhile."""

from __future__ import annotations

import csv
import gzip
import json
import re
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from sidecar.fleet import parts as parts_module
from sidecar.fleet import reading
from sidecar.fleet.reading import Read, Sampling
from sidecar.fleet.sample import Limits
from sidecar.fleet.workers import Workers, processes
from sidecar.journal.retention import compress_closed
from sidecar.journal.segments import JournalError, journal_segments
from sidecar.pairs import lines as lines_module
from sidecar.pairs.errors import RecordedPairsError
from sidecar.pairs.recorded import read_pairs
from sidecar.pairs.tables import arrow as arrow_module
from sidecar.pairs.tables.choice import Columns
from sidecar.state.forget import forget
from tests.conftest import EXAMPLE
from tests.journals import write_journal

SIX = ("adm2", "vif_scale0", "vif_scale1", "vif_scale2", "vif_scale3", "motion2")
EVERYTHING = Limits(100_000, 100_000)


def read(
    paths, limits: Limits = EVERYTHING, workers: Workers | None = None, skip_bad: bool = False, names: bool = False, **columns
) -> Read:
    here = Workers("this process", lambda: ThreadPoolExecutor(1), lambda: 1)
    sampling = Sampling(workers or here, limits)
    found = sampling.read(paths, Columns(**columns), score_min=0, score_max=100, skip_bad=skip_bad, names=names)
    here.close()
    return found


def as_bytes(found: Read) -> list[bytes]:
    pairs = found.pairs
    return [each.tobytes() for each in (pairs.features, pairs.true_score, pairs.position)]


@pytest.fixture
def rows():
    with gzip.open(EXAMPLE) as stream:
        return stream.read().splitlines()


@pytest.fixture
def pods(tmp_path, rows) -> list[Path]:
    """The state directories of three pods, each with a closed segment, a gzipped one and an open one."""
    found = []
    for number in range(3):
        lines = rows[number::3]
        names = {f"{at:012d}.jsonl{end}": lines[at : at + 300] for at, end in ((0, ".gz"), (300, ""), (600, ""))}
        found.append(write_journal(tmp_path / f"pod-{number}", names))
    return found


def test_with_room_for_all_the_sample_is_all_pairs(pods):
    found, expected = read(pods), read_pairs(pods)
    for one, other in ((found.pairs.features, expected.features), (found.pairs.position, expected.position)):
        assert np.array_equal(np.sort(one, axis=0), np.sort(other, axis=0))
    assert len(found.pairs) == 2496
    assert [(pod.name, pod.read, pod.kept) for pod in found.pods] == [
        ("", 0, 0), *((str(pod), 832, 832) for pod in pods)
    ]  # fmt: skip
    assert np.bincount(found.pod).tolist() == [0, 832, 832, 832]
    assert found.pairs.file_pairs == [832] * 3
    assert sum(found.read) == sum(found.kept) == 2496
    assert found.read[9] == (expected.true_score >= 90).sum()
    mean = np.mean([json.loads(line)["true_score"] for line in pods[0].joinpath("journal/000000000300.jsonl").read_bytes()
                    .splitlines() if line.startswith(b"{")])  # fmt: skip
    assert abs(found.pods[1].mean_score - mean) < 5


def test_same_pairs_in_other_files_in_another_order_and_by_other_workers_give_the_same_bytes(tmp_path, rows):
    limits = Limits(700, 5)
    (tmp_path / "all.jsonl").write_bytes(b"\n".join(rows) + b"\n")
    expected = read([tmp_path / "all.jsonl"], limits)
    assert len(expected.pairs) == 700
    order = np.random.default_rng(0).permutation(len(rows))
    for number, part in enumerate(np.array_split(order, 4)):
        (tmp_path / f"part-{number}.jsonl").write_bytes(b"\n".join([rows[row] for row in part]) + b"\n")
    parts = [tmp_path / f"part-{number}.jsonl" for number in (2, 0, 3, 1)]
    assert as_bytes(read(parts, limits)) == as_bytes(expected)
    with processes(2) as workers:
        assert as_bytes(read([str(tmp_path / "part-*")], limits, workers)) == as_bytes(expected)


def test_rare_codecs_pods_and_scores_are_kept(pods, tmp_path, rows):
    rare = write_journal(tmp_path / "rare", {"000000000000.jsonl": rows[:40]})
    found = read([*pods, rare], Limits(400, 1000))
    kept = dict(zip([Path(pod.name).name for pod in found.pods], found.pods, strict=True))
    assert kept["rare"].kept > 20  # of 40; its even share would be 6
    assert kept["pod-0"].kept < 150
    assert found.kept[0] > found.read[0] / 2  # the lowest scores
    assert found.kept[9] < found.read[9] / 5


def test_labels_are_numbered_by_name(pods):
    found = read(pods, label="codec").pairs
    assert found.group_names == ["libsvtav1", "libvpx-vp9", "libx264", "libx265"]
    expected = read_pairs(pods, group_by="codec")
    counts = dict(zip(expected.group_names, np.bincount(expected.group), strict=True))
    assert np.bincount(found.group).tolist() == [counts[name] for name in found.group_names]


def test_encodes_have_their_names_those_first_that_are_held_out_first(pods, monkeypatch):
    expected = read_pairs(pods, group_by="group")
    for most in (1000, 10):
        monkeypatch.setattr(reading, "_NAMED", most)
        found = read(pods, names=True).pairs
        named = {found.group_names[code]: where for code, where in zip(found.group, found.position, strict=True)}
        all_of_them = dict(zip([expected.group_names[code] for code in expected.group], expected.position, strict=True))
        first = sorted(all_of_them, key=all_of_them.__getitem__)[:most]
        assert {name: named[name] for name in named if name} == {name: all_of_them[name] for name in first}
    assert read(pods).pairs.group is None


def test_what_comes_after_the_reading_began_is_not_in_it(pods, rows, monkeypatch):
    expected = as_bytes(read(pods))
    divide = parts_module.divide

    def then_on_it_goes(*arguments):
        found = divide(*arguments)
        write_journal(pods[0], {"000000000600.jsonl": [*rows[1800::3], *rows[:5]], "000000000837.jsonl": rows[5:10]})
        compress_closed(pods[0], 0)
        compress_closed(pods[1], 0)
        return found

    monkeypatch.setattr(reading, "divide", then_on_it_goes)
    assert as_bytes(read(pods)) == expected
    assert [path.name[-3:] for path in journal_segments(pods[0])] == [".gz", ".gz", ".gz", "onl"]


def test_segment_that_retention_deletes_meanwhile_is_named(pods, monkeypatch):
    divide = parts_module.divide

    def then_one_goes(*arguments):
        found = divide(*arguments)
        journal_segments(pods[1])[0].unlink()
        return found

    monkeypatch.setattr(reading, "divide", then_one_goes)
    found = read(pods)
    assert len(found.pairs) == 2196
    (why,) = found.left_out
    assert why == f"{pods[1]}/journal/000000000000.jsonl.gz: No such file or directory: deleted since the reading began"


def test_what_is_forgotten_is_not_read(pods):
    group = json.loads(pods[0].joinpath("journal/000000000300.jsonl").read_bytes().splitlines()[1])["group"]
    before = read_pairs(pods, group_by="group")
    for pod in pods:
        forget([group], pod)
    assert len(read(pods).pairs) == 2496 - int((before.group == before.group_names.index(group)).sum()) < 2496


def test_last_write_that_a_crash_cut_off_is_not_read(tmp_path, rows):
    state = write_journal(tmp_path / "state", {"000000000000.jsonl": rows[:50]}, torn=rows[50])
    assert len(read([state]).pairs) == 50


def test_damage_ends_the_reading_or_is_left_out_and_named(pods, tmp_path, rows):
    segment = pods[1] / "journal" / "000000000300.jsonl"
    data = bytearray(segment.read_bytes())
    data[5000] ^= 1
    segment.write_bytes(data)
    broken = tmp_path / "broken.jsonl.gz"
    broken.write_bytes(gzip.compress(b"\n".join(rows[:100]))[:-20])
    with pytest.raises(JournalError, match=r"000000000300.jsonl: damaged from byte"):
        read(pods)
    with pytest.raises(RecordedPairsError, match=r"broken.jsonl.gz: damaged or truncated gzip"):
        read([broken, pods[0]])
    found = read([*pods, broken], skip_bad=True)
    assert len(found.pairs) == 2196
    assert [each.partition(": ")[0] for each in found.left_out] == [str(broken), str(segment)]
    with pytest.raises(RecordedPairsError, match=r"no pairs"):
        read([broken], skip_bad=True)


def test_all_parts_have_the_features_of_the_first(tmp_path):
    (tmp_path / "a.csv").write_text("vmaf,vif_scale0,adm2\n50,1,2\n60,3,4\n")
    (tmp_path / "b.csv").write_text("adm2,vif_scale0,vmaf\n5,6,70\n")
    found = read([tmp_path / "b.csv", tmp_path / "a.csv"]).pairs
    assert found.feature_names == ("vif_scale0", "adm2")
    assert sorted(found.features.tolist()) == [[1, 2], [3, 4], [6, 5]]
    (tmp_path / "c.csv").write_text("adm2,vmaf\n5,70\n")
    with pytest.raises(RecordedPairsError, match=r"c.csv: no column for vif_scale0"):
        read([str(tmp_path / "*.csv")])


def test_a_codec_that_is_no_text_makes_no_pair_wrong(tmp_path, rows):
    odd = [{**json.loads(line), "codec": codec} for line, codec in zip(rows, ([], {"a": 1}, None, True, 7, "x"), strict=False)]
    (tmp_path / "odd.jsonl").write_text("\n".join(map(json.dumps, odd)))
    assert len(read([tmp_path / "odd.jsonl"]).pairs) == 6


def test_standard_input_is_refused():
    with pytest.raises(RecordedPairsError, match="standard input cannot be read by several workers"):
        read(["-"])


def as_csv(path: Path, rows: list[bytes], quoted: bool = False) -> Path:
    objects = [json.loads(row) for row in rows]
    with path.open("w", newline="") as stream:
        writer = csv.writer(stream, quoting=csv.QUOTE_ALL if quoted else csv.QUOTE_MINIMAL)
        writer.writerow(["group", *SIX, "true_score"])
        writer.writerows([[each["group"], *each["features"][:6], each["true_score"]] for each in objects])
    return path


def as_parquet(path: Path, rows: list[bytes]) -> Path:
    arrow = pytest.importorskip("pyarrow")
    import pyarrow.parquet as pq

    objects = [json.loads(row) for row in rows]
    columns = {name: [each["features"][place] for each in objects] for place, name in enumerate(SIX)}
    columns |= {name: [each[name] for each in objects] for name in ("group", "true_score")}
    pq.write_table(arrow.table(columns), path, row_group_size=100)
    return path


def as_jsonl(path: Path, rows: list[bytes]) -> Path:
    path.write_bytes(b"\n".join(rows))
    return path


@pytest.fixture
def _pieces_are_small(monkeypatch):
    for module in (lines_module, arrow_module, parts_module):
        monkeypatch.setattr(module, "PIECE_BYTES", 5000)
    monkeypatch.setattr(lines_module, "_READ_BYTES", 3000)


@pytest.mark.parametrize("write", [as_jsonl, as_csv, as_parquet])
def test_large_file_is_read_in_pieces_and_gives_the_same(tmp_path, rows, write, request):
    wrong = json.dumps({**json.loads(rows[0]), "true_score": 101}).encode()
    file, limits = write(tmp_path / f"pairs.{write.__name__[3:]}", [*rows[:900], wrong, *rows[900:1000]]), Limits(700, 9)
    whole = read([file], limits, skip_bad=True)
    request.getfixturevalue("_pieces_are_small")
    found = read([file], limits, skip_bad=True)
    assert whole.parts == 1
    assert found.parts >= 5
    assert as_bytes(found) == as_bytes(whole)
    assert (found.pairs.chosen, found.read) == (whole.pairs.chosen, whole.read)
    assert found.pairs.skips == whole.pairs.skips
    assert re.search(
        r"1 of 1,001 rows skipped: 1 wrong, the first: .*: (line|row) 90[12]: true_score: 101 ", *found.pairs.skips
    )


@pytest.mark.usefixtures("_pieces_are_small")
def test_what_cannot_be_cut_is_one_part(tmp_path, rows):
    (tmp_path / "pairs.jsonl.gz").write_bytes(gzip.compress(b"\n".join(rows)))
    quoted = as_csv(tmp_path / "quoted.csv", rows[:500], quoted=True)
    log = tmp_path / "log.csv"
    log.write_text("Frame,adm2,vmaf\n" + "1,0.5,70\n" * 20_000)
    assert [read([file]).parts for file in (tmp_path / "pairs.jsonl.gz", quoted, log)] == [1, 1, 1]


@pytest.mark.usefixtures("_pieces_are_small")
def test_damaged_piece_of_a_file_is_left_out_and_named(tmp_path, rows):
    file = as_csv(tmp_path / "pairs.csv", rows[:1000])
    data = bytearray(file.read_bytes())
    data[len(data) // 2] = 0xFF
    file.write_bytes(data)
    found = read([file], skip_bad=True)
    assert 500 < len(found.pairs) < 1000
    (why,) = found.left_out
    assert re.fullmatch(r".*pairs.csv: line (\d+): not CSV text: .* \(left out: the piece of the file from row \d+ on\)", why)
