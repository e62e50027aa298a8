"""Each form of recorded pairs: what is read as features, score and group, and which rows are skipped.

docs/training.md has the same table.
"""

from __future__ import annotations

import csv
import gzip
import io
import json
import re
import subprocess
import sys
import tarfile
import zipfile

import numpy as np
import pytest

from sidecar.features.encoder_block import EncoderBlock
from sidecar.pairs.errors import RecordedPairsError
from sidecar.pairs.holdout import holdout_position
from sidecar.pairs.recorded import read_pairs
from sidecar.pairs.tables import arrow
from tests.conftest import ROOT, SHARED

pyarrow = pytest.importorskip("pyarrow")
SAMPLES = SHARED / "samples"
SIX = ("adm2", "vif_scale0", "vif_scale1", "vif_scale2", "vif_scale3", "motion2")
FRAMES = [{name: round(0.1 * place + 0.01 * frame, 4) for place, name in enumerate(SIX)} for frame in range(5)]
SCORES = [90.0, 80.5, 70.0, 60.25, 50.0]


def rows(named="{}", **beside):
    return [{**{named.format(k): v for k, v in f.items()}, **beside} for f in FRAMES]


def scored(column="vmaf", named="{}", **beside):
    return [{**row, column: score} for row, score in zip(rows(named, **beside), SCORES, strict=True)]


def jsonl(path, objects):
    path.write_text("".join(json.dumps(each) + "\n" for each in objects))  # which writes NaN as Python does
    return path


def libvmaf_json(path, named="integer_{}", **more):
    frames = [{"frameNum": i, "metrics": row} for i, row in enumerate(scored(named=named))]
    path.write_text(json.dumps({"version": "3.0.0", "fps": 9.5, "frames": frames, "pooled_metrics": {}, **more}, indent=2))
    return path


def libvmaf_csv(path):
    names = [*(f"integer_{name}" for name in SIX), "vmaf"]
    lines = [",".join(["Frame", *names, ""])]
    lines += [",".join([str(i), *(str(row[name]) for name in names), ""]) for i, row in enumerate(scored(named="integer_{}"))]
    path.write_text("\n".join(lines) + "\n")
    return path


def libvmaf_xml(path, doctype=""):
    frames = "".join(
        f'<frame frameNum="{i}" {" ".join(f"{k}={str(v)!r}" for k, v in row.items())} />'
        for i, row in enumerate(scored(named="integer_{}"))
    )
    head = f'{doctype}<VMAF version="3.0.0"><params qualityWidth="576" /><fyi fps="9" />'
    path.write_text(f"{head}<frames>{frames}</frames><pooled_metrics /></VMAF>")
    return path


def delimited(path, objects, delimiter=",", encoding="utf-8", end="\n"):
    text = io.StringIO()
    writer = csv.DictWriter(text, objects[0], delimiter=delimiter, lineterminator=end)
    writer.writeheader()
    writer.writerows(objects)
    path.write_bytes(text.getvalue().encode(encoding))
    return path


def parquet(path, objects):
    import pyarrow.parquet

    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(objects), path)
    return path


def feather(path, objects):
    import pyarrow.feather

    pyarrow.feather.write_feather(pyarrow.Table.from_pylist(objects), path)
    return path


def npz(path, **arrays):
    np.savez(path, **arrays)
    return path


VALUES = np.array([[*row.values()] for row in FRAMES])
CLIP_CACHE = {
    "features": {"feature_names": [*SIX], "per_frame": VALUES.tolist()},
    "scores": {"per_frame": SCORES, "pooled": 70.0},
}
FULL_CACHE = {"feature_names": [*SIX], "per_frame": VALUES.tolist(), "teacher_per_frame": SCORES}
ENCODE = {"src": "a.yuv", "encoder": "libx264", "crf": 23, "preset": "medium", "exit_status": 0, "enc_time_ms": 9.5}
FILE = "the file"

PAIRS = list(zip(FRAMES, SCORES, strict=True))

FORMS = {
    "request lines": (
        lambda d: jsonl(d / "p.jsonl", [{"features": [*f.values()], "true_score": s, "group": "g", "job_id": "j"}
            for f, s in PAIRS]),
        (), "true_score", "group",
    ),
    "request lines by name": (
        lambda d: jsonl(d / "p.ndjson", [{"features": f, "true_score": s, "group": "g"} for f, s in PAIRS]),
        SIX, "true_score", "group",
    ),
    "flat objects": (lambda d: jsonl(d / "p.jsonl", scored(frame_index=1, mos_raw_0_100=90.0)), SIX, "vmaf", None),
    "sidecar captures": (
        lambda d: jsonl(d / "p.jsonl", [{"features": f, "crf": 23, "observed_vmaf": s} for f, s in PAIRS]),
        SIX, "observed_vmaf", None,
    ),
    "hw_encoder_corpus": (
        lambda d: jsonl(d / "p.jsonl", scored(src="a", encoder="h264_nvenc", cq=31, enc_time_ms=9.5, frame_index=3)),
        SIX, "vmaf", "src/encoder/cq",
    ),
    "vmaf-tune corpus": (
        lambda d: jsonl(d / "p.jsonl", scored("vmaf_score", "{}_mean", **ENCODE, vmaf_model="vmaf_v0.6.1")),
        tuple(f"{name}_mean" for name in SIX), "vmaf_score", "src",
    ),
    "CSV": (lambda d: delimited(d / "p.csv", scored(key="a", **{"": 0})), SIX, "vmaf", "key"),
    "semicolons, BOM, Windows": (
        lambda d: delimited(d / "p.csv", scored(group="a"), ";", "utf-8-sig", "\r\n"), SIX, "vmaf", "group",
    ),
    "TSV": (lambda d: delimited(d / "p.tsv", scored(clip="a"), "\t"), SIX, "vmaf", "clip"),
    "parquet of frames": (
        lambda d: parquet(d / "p.parquet", scored(source="s", dis_basename="b.yuv", frame_index=1, codec="x")),
        SIX, "vmaf", "source/dis_basename",
    ),
    "parquet by key": (lambda d: parquet(d / "p.parquet", scored(key="k", frame_index=1)), SIX, "vmaf", "key"),
    "feather": (lambda d: feather(d / "p.feather", scored(source="s")), SIX, "vmaf", "source"),
    "npz": (lambda d: npz(d / "p.npz", features=VALUES, scores=SCORES), (), "scores", None),
    "npz with names": (
        lambda d: npz(d / "p.npz", features=VALUES, true_score=SCORES, feature_names=np.array(SIX), group=np.full(5, "g")),
        SIX, "true_score", "group",
    ),
    "libvmaf JSON": (lambda d: libvmaf_json(d / "p.json"), SIX, "vmaf", FILE),
    "libvmaf CSV": (lambda d: libvmaf_csv(d / "p.csv"), SIX, "vmaf", FILE),
    "libvmaf XML": (lambda d: libvmaf_xml(d / "p.xml"), SIX, "vmaf", FILE),
    "cache of a clip": (lambda d: _write(d / "p.json", json.dumps(CLIP_CACHE)), SIX, "vmaf", FILE),
    "cache of a clip, full": (lambda d: _write(d / "p.json", json.dumps(FULL_CACHE)), SIX, "vmaf", FILE),
}  # fmt: skip


def _write(path, text):
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


@pytest.mark.parametrize("form", FORMS)
def test_what_is_read_of_a_form(form, tmp_path):
    make, names, score, group = FORMS[form]
    path = make(tmp_path)
    pairs = read_pairs([path])
    assert pairs.feature_names == names
    assert np.array_equal(pairs.features, VALUES.astype(np.float32))
    assert np.array_equal(pairs.true_score, np.array(SCORES, np.float32))
    [chosen] = pairs.chosen
    assert (chosen["true_score"], chosen.get("group"), chosen["files"]) == (score, group, 1)
    assert pairs.ungrouped == (0 if group else 5)
    assert len({*pairs.position.tolist()}) == (1 if group else 5)  # frames of one encode stay together
    assert (pairs.skipped, pairs.skips, pairs.notes) == (0, [], [])


@pytest.mark.parametrize("form", FORMS)
def test_gzip_is_told_by_content_where_a_form_is_read_from_its_beginning(form, tmp_path):
    path = FORMS[form][0](tmp_path)
    path.write_bytes(gzip.compress(path.read_bytes()))
    if path.suffix in (".npz", ".parquet", ".feather"):
        with pytest.raises(RecordedPairsError, match="read from its end"):
            read_pairs([path])
    else:
        assert len(read_pairs([path])) == 5


def test_zstd_is_told_by_content(tmp_path):
    path = jsonl(tmp_path / "p.jsonl", scored())
    path.write_bytes(pyarrow.compress(path.read_bytes(), "zstd", asbytes=True))
    assert len(read_pairs([path])) == 5


def test_the_name_of_a_file_is_but_a_hint(tmp_path):
    for make in ("CSV", "libvmaf JSON", "libvmaf XML", "parquet by key", "npz"):
        path = FORMS[make][0](tmp_path)
        bare = path.rename(tmp_path / "pairs")
        assert len(read_pairs([bare])) == 5, make


@pytest.mark.parametrize("write", [jsonl, delimited, parquet])
def test_rows_with_a_missing_value_are_counted_and_wrong_ones_stop(write, tmp_path):
    found = scored(key="a")
    found[1]["vif_scale0"] = None
    found[3]["vmaf"] = None
    path = write(tmp_path / "p", found)
    pairs = read_pairs([path])
    assert (len(pairs), pairs.skipped) == (3, 2)
    place = {jsonl: "line 2", delimited: "line 3", parquet: "row 2"}[write]
    assert pairs.skips == [f"{path}: 2 of 5 rows skipped: 2 with a missing value, the first: {place} (vif_scale0)"]
    found[2]["vmaf"] = 100.0001
    write(path, found)
    place = {jsonl: "line 3", delimited: "line 4", parquet: "row 3"}[write]
    with pytest.raises(RecordedPairsError, match=f"^{path}: {place}: vmaf: 100.0001 is outside 0 to 100$"):
        read_pairs([path])
    assert read_pairs([path], skip_bad=True).skips[0].startswith(f"{path}: 3 of 5 rows skipped: 1 wrong, the first: ")


def test_a_feature_without_any_value_is_left_out_unless_it_was_asked_for(tmp_path):
    path = jsonl(tmp_path / "p.jsonl", scored(ciede2000=None, psnr_hvs=float("nan")))
    pairs = read_pairs([path])
    assert pairs.feature_names == SIX
    assert pairs.notes == [f"{path}: left out, as no row has a value: ciede2000, psnr_hvs"]
    with pytest.raises(RecordedPairsError, match=r"no pairs; .*5 of 5 rows skipped: 5 with a missing value"):
        read_pairs([path], features=["adm2", "ciede2000"])


def test_features_are_chosen_by_name_in_any_spelling_and_order(tmp_path):
    path = libvmaf_json(tmp_path / "p.json")
    pairs = read_pairs([path], features=["motion2", "VMAF_integer_feature_adm2_score"])
    assert pairs.feature_names == ("motion2", "adm2")
    assert np.array_equal(pairs.features, VALUES[:, [5, 0]].astype(np.float32))
    with pytest.raises(RecordedPairsError, match="no column for ssim; columns: integer_adm2, "):
        read_pairs([path], features=["ssim"])


def test_several_files_have_the_same_features_by_name(tmp_path):
    first = delimited(tmp_path / "a.csv", scored(key="a"))
    shuffled = [dict(reversed(row.items())) for row in scored(named="integer_{}", key="b")]
    second = parquet(tmp_path / "b.parquet", shuffled)
    pairs = read_pairs([first, second])
    assert np.array_equal(pairs.features[:5], pairs.features[5:])
    assert pairs.file_pairs == [5, 5]
    with pytest.raises(RecordedPairsError, match="no column for adm2"):
        read_pairs([first, delimited(tmp_path / "c.csv", [{"vif": 1, "vmaf": 2}])])


def test_a_directory_or_a_glob_is_its_files(tmp_path):
    for name in ("a.json", "b.json"):
        libvmaf_json(tmp_path / name)
    (tmp_path / "README.md").write_text("no pairs")
    assert read_pairs([tmp_path]).file_pairs == [10]
    pairs = read_pairs([f"{tmp_path}/*.json"])
    assert pairs.file_pairs == [10]
    assert pairs.chosen[0]["files"] == 2
    assert len({*pairs.position.tolist()}) == 2
    with pytest.raises(RecordedPairsError, match="no file and no state directory has such a name"):
        read_pairs([f"{tmp_path}/*.xml"])


@pytest.mark.parametrize(("window", "means"), [(1, SCORES), (2, [85.25, 65.125]), (0, [70.15])])
@pytest.mark.parametrize("form", ["libvmaf JSON", "libvmaf CSV", "libvmaf XML", "cache of a clip"])
def test_a_window_is_the_mean_of_its_frames(form, window, means, tmp_path):
    pairs = read_pairs([FORMS[form][0](tmp_path)], window=window)
    assert pairs.true_score.tolist() == pytest.approx(means)
    width = window or 5
    expected = [VALUES[i : i + width].mean(axis=0) for i in range(0, 5 - width + 1, width)]
    assert np.allclose(pairs.features, expected)
    assert pairs.skipped == (1 if window == 2 else 0)
    with pytest.raises(RecordedPairsError, match="--window is for logs of libvmaf"):
        read_pairs([jsonl(tmp_path / "t.jsonl", scored())], window=2)


def test_groups_of_logs_do_not_depend_on_how_a_path_is_written(tmp_path, monkeypatch):
    (tmp_path / "logs").mkdir()
    path = libvmaf_json(tmp_path / "logs" / "a.json")
    absolute = read_pairs([path]).position
    monkeypatch.chdir(tmp_path / "logs")
    assert np.array_equal(read_pairs(["a.json"]).position, absolute)
    assert absolute[0] == holdout_position("logs/a.json", "", b"")


def test_scores_of_different_models_are_not_mixed_without_a_word(tmp_path):
    first = jsonl(tmp_path / "a.jsonl", scored(vmaf_model="vmaf_v0.6.1"))
    second = jsonl(tmp_path / "b.jsonl", scored(vmaf_model="/models/vmaf_4k_v0.6.1.json"))
    assert read_pairs([first]).target == "vmaf_v0.6.1"
    with pytest.raises(RecordedPairsError, match=r"different models: vmaf_v0\.6\.1 .*, vmaf_4k_v0\.6\.1 .*; --any-target"):
        read_pairs([first, second])
    assert read_pairs([first, second], any_target=True).target == ""
    assert read_pairs([libvmaf_json(tmp_path / "n.json", "integer_{}_egl_1")]).target == "vmaf_v0.6.1neg"
    assert read_pairs([libvmaf_json(tmp_path / "m.json", model="version=vmaf_b_v0.6.3")]).target == "vmaf_b_v0.6.3"


def test_an_encode_is_given_by_encoder_preset_and_crf(tmp_path):
    about = {"encoder_vocab": ["libx264", "unknown"]}
    block = EncoderBlock.of_description(about)
    path = jsonl(tmp_path / "p.jsonl", scored("vmaf_score", "{}", **ENCODE))
    wanted = [*SIX, *block.names]
    given = block.numbers("libx264", "medium", 23)
    if given.keys() != {*block.names}:
        block = EncoderBlock.of_description(about | {"preset_norm": {"medium": 0.5}, "crf_norm": {"min": 0, "max": 63}})
        given = block.numbers("libx264", "medium", 23)
    pairs = read_pairs([path], features=wanted, block=block)
    assert pairs.feature_names == tuple(wanted)
    assert np.array_equal(pairs.features[:, :6], VALUES.astype(np.float32))
    assert pairs.features[:, 6:].tolist() == [np.float32([given[name] for name in block.names]).tolist()] * 5
    with pytest.raises(RecordedPairsError, match="line 1: crf: expected a number, got 'x'"):
        read_pairs([jsonl(path, scored("vmaf_score", "{}", **ENCODE | {"crf": "x"}))], features=wanted, block=block)


def tar_of(data):
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w:gz") as archive:
        archive.addfile(tarfile.TarInfo("p.csv"), io.BytesIO(data))
    return out.getvalue()


def zip_of(*names):
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        for name in names:
            archive.writestr(name, "x")
    return out.getvalue()


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("p.xlsx", zip_of("[Content_Types].xml", "xl/workbook.xml"), "an Excel or Office file: save the sheet as CSV"),
        ("p.xls", b"\xd0\xcf\x11\xe0" + bytes(600), "an Excel file (.xls): save the sheet as CSV"),
        ("p.zip", zip_of("p.csv"), "a zip archive without arrays: unpack it first"),
        ("p.csv.gz", tar_of(b"x"), "a compressed tar archive: unpack it first"),
        ("p.csv", "vif,vmaf\n1,2\n".encode("utf-16"), "text in UTF-16: save it as UTF-8"),
        ("p.jsonl", '{"vif":1}\n'.encode("utf-16-le"), "text in UTF-16: save it as UTF-8"),
        ("p.parquet", b"version https://git-lfs.github.com/spec/v1\noid sha256:00\n", "a Git LFS pointer"),
        ("p.json", b"\n<!DOCTYPE html><html></html>", "an HTML page"),
        ("p.pdf", b"%PDF-1.7\n", "a PDF: export the table as CSV"),
        ("p.npy", b"\x93NUMPY\x01\x00", "a single numpy array"),
        ("p.h5", b"\x89HDF\r\n\x1a\n", "an HDF5 file"),
        ("p.gz", gzip.compress(gzip.compress(b"vif,vmaf\n1,2\n")), "compressed twice"),
        ("p.bin", bytes(range(256)) * 9, "no recorded pairs; expected JSON lines, CSV"),
        ("p.json", b"[1, 2]", "a JSON array; write one object a line"),
        ("p.json", b'{\n"a": 1\n}', "no log of libvmaf and no cache"),
        ("p.xml", b"<svg></svg>", "XML, but no log of libvmaf: it begins with <svg>, expected <VMAF>"),
        ("p.xml", b"<VMAF><frames><frame vif='1' vmaf='2'/>", "damaged or truncated XML"),
        ("p.csv", b"vif,vif,vmaf\n1,2,3\n", "line 1: two columns of one name: vif"),
        ("p.csv", b"vif,integer_vif,vmaf\n1,2,3\n", "one feature in several columns: vif, integer_vif"),
        ("p.csv", b"a,b,vmaf\n1,2,3\n", "no column is named like a feature of libvmaf; --features A,B,… names them; columns: "),
        ("p.csv", b"vif,mos\n1,2\n", "no score: no column true_score, vmaf, vmaf_score, observed_vmaf; a mos has another"),
        ("p.csv", b"vif;vmaf\n0,5;90\n", "line 2: vif: expected a number, got '0,5'; write decimals with a point"),
        ("p.jsonl", b'{"vif":true,"vmaf":3}\n', "line 1: vif: expected a number, got bool"),
    ],
    ids=lambda value: value if isinstance(value, str) else "data",  # archives hold the time
)  # fmt: skip
def test_what_is_no_table_is_told_with_what_to_do(name, data, message, tmp_path):
    path = _write(tmp_path / name, data)
    with pytest.raises(RecordedPairsError) as refused:
        read_pairs([path])
    assert str(refused.value).startswith(f"{path}: ")
    assert message in str(refused.value)


def test_a_group_that_is_no_text_is_refused_with_its_type(tmp_path):
    path = parquet(tmp_path / "p.parquet", scored(key=["a"]))
    with pytest.raises(RecordedPairsError, match=r"row 1: key: expected text or numbers, the column has list<"):
        read_pairs([path])


def test_byte_order_marks_of_files_that_were_put_together_are_no_part_of_a_name(tmp_path):
    (tmp_path / "p.csv").write_text("\ufeff\ufeffvif,adm2,vmaf\n1,2,3\n")
    assert read_pairs([tmp_path / "p.csv"]).feature_names == ("vif", "adm2")


@pytest.mark.parametrize("row_group", [700, 3000, 5000])
def test_parquet_that_is_read_in_pieces_is_read_as_it_stands(tmp_path, monkeypatch, row_group):
    from pyarrow.parquet import write_table as write

    for name, value in (("_FEW", 3), ("_BATCH_VALUES", 2000), ("_TOGETHER_VALUES", 20_000)):
        monkeypatch.setattr(arrow, name, value)
    rng = np.random.default_rng(0)
    columns = {name: [*rng.random(5000)] for name in (f"{name}_{pooled}" for name in SIX[1:5] for pooled in ("p05", "p95"))}
    columns |= {"adm2": [*rng.integers(0, 9, 5000).tolist()], "vmaf": [*rng.uniform(0, 100, 5000)]}
    columns |= {"key": [f"clip {row // 300}" for row in range(5000)]}
    features = np.array([columns[name] for name in columns if name not in ("vmaf", "key")], dtype=np.float32).T
    missing = (17, 2999, 4999)
    for row, name in zip(missing, ("adm2", "vif_scale3_p95", "vmaf"), strict=True):
        columns[name][row] = None
    path = tmp_path / "p.parquet"
    write(pyarrow.table(columns), path, row_group_size=row_group)
    pairs = read_pairs([path], group_by="key")
    assert np.array_equal(pairs.features, np.delete(features, missing, axis=0))
    assert np.array_equal(pairs.true_score, np.delete(np.array(columns["vmaf"], dtype=np.float32), missing))
    assert np.array_equal(pairs.group, np.delete(np.arange(5000) // 300, missing))
    assert pairs.skips == [f"{path}: 3 of 5,000 rows skipped: 3 with a missing value, the first: row 18 (adm2)"]

    columns["vif_scale2_p05"][4321], columns["vif_scale2_p95"][4400] = 1e39, float("inf")
    write(pyarrow.table(columns), path, row_group_size=row_group)
    with pytest.raises(RecordedPairsError, match=r"row 4322: vif_scale2_p05: 1e\+39 does not fit float32"):
        read_pairs([path])
    assert len(read_pairs([path], skip_bad=True)) == 5000 - 5


@pytest.mark.slow
def test_parquet_takes_little_more_memory_than_what_is_read(tmp_path):
    from pyarrow.parquet import write_table as write

    path, count, width = tmp_path / "p.parquet", 500_000, 80
    rng = np.random.default_rng(0)
    names = [f"x{at}" for at in range(width)]
    table = pyarrow.table({**{name: rng.random(count) for name in names}, "vmaf": 100 * rng.random(count)})
    write(table, path, row_group_size=count)
    read = (
        f"import sys, sidecar; print(len(sidecar.read_pairs([{str(path)!r}], features={names})), 'pandas' in sys.modules)\n"
        "print(*(line.split()[1] for line in open('/proc/self/status') if line.startswith('VmHWM')))"
    )
    found = subprocess.run([sys.executable, "-c", read], capture_output=True, text=True, check=True).stdout.split()
    assert found[:2] == [str(count), "False"]
    assert int(found[2]) / 1000 < count * (width * 4 + 12) / 1e6 + 170  # of these are Python and pyarrow 100


def test_a_footer_with_another_number_of_rows_is_damage(tmp_path):
    path = parquet(tmp_path / "p.parquet", scored())
    good = path.read_bytes()
    footer = len(good) - 8 - int.from_bytes(good[-8:-4], "little")
    said = ""
    for place in range(footer, len(good) - 8):
        if good[place] == 10:  # 5, the number of rows, in thrift's zigzag code
            for other in (9, 8, 12):
                path.write_bytes(good[:place] + bytes([other]) + good[place + 1 :])
                try:
                    assert len(read_pairs([path])) in (4, 5)
                except RecordedPairsError as refused:
                    said += str(refused)
    assert "damaged parquet: 5 rows, where 6 are announced" in said


def test_hostile_files_end_in_a_clear_error(tmp_path):
    laughs = '<!DOCTYPE v [<!ENTITY a "ha">' + "".join(f'<!ENTITY a{i} "{"&a;" * 10}">' for i in range(9)) + "]>"
    good = parquet(tmp_path / "good.parquet", scored()).read_bytes()
    deep = b"[" * 200_000
    for name, data, message in (
        ("laughs.xml", libvmaf_xml(tmp_path / "x", laughs).read_bytes(), "XML with a document type"),
        ("footer.parquet", good[:-8] + b"\xff\xff\xff\x7fPAR1", "damaged or truncated parquet"),
        ("name.parquet", good.replace(b"adm2", b"adm\xff"), "damaged or truncated parquet: 'utf-8' codec"),
        ("middle.parquet", good[:-200] + bytes(150) + good[-50:], "damaged"),
        ("deep.json", b'{\n"frames": ' + deep, "nested too deep|neither lines"),
        ("deep.jsonl", b'{"vif": 1, "vmaf": 2, "x": ' + deep + b"}\n", "line 1: .*deep"),
        ("deep.xml", b"<VMAF>" + b"<a>" * 100_000, "nested too deep"),
        ("long.csv", b"vif,vmaf\n" + b"1" * (3 << 20), "line 2: longer than 1048576 bytes"),
        ("wide.csv", b"vif,vmaf\n" + b"1," * (3 << 19), "line 2: longer than 1048576 bytes"),
        ("tag.xml", b"<VMAF a='" + b"x" * (20 << 20), "MiB of XML without a frame"),
    ):
        with pytest.raises(RecordedPairsError, match=message):
            read_pairs([_write(tmp_path / name, data)])


def test_without_pyarrow_the_extra_is_named(tmp_path, monkeypatch):
    path = parquet(tmp_path / "p.parquet", scored())
    monkeypatch.setitem(__import__("sys").modules, "pyarrow", None)
    with pytest.raises(RecordedPairsError, match=re.escape("parquet needs pyarrow: run pip install 'vmafx-sidecar[parquet]'")):
        read_pairs([path])


def sample(name):
    if not (SAMPLES / name).exists():
        pytest.skip(f"no sample {name}")
    return SAMPLES / name


@pytest.mark.parametrize(
    ("name", "options", "width", "skipped"),
    [
        ("vmaf_cli.json", {}, 14, 0),
        ("vmaf_cli.csv", {}, 14, 0),
        ("vmaf_cli.xml", {}, 14, 0),
        ("vmaftune_corpus_v3_filled.jsonl", {}, 12, 1),
        ("hw_encoder_corpus.jsonl", {}, 6, 0),
        ("full_features_netflix.parquet", {}, 21, 0),
        ("full_features_bvi_dvc_D.parquet", {}, 21, 1),
        ("vmaf_train_fit_cache.npz", {"features": SIX}, 6, 0),
        ("netflix_cache_clip.json", {}, 6, 0),
        ("k150k_features.parquet", {"target": "mos", "score_min": 1, "score_max": 5}, 44, 0),
        ("k150k_features.rows.jsonl", {"target": "mos", "score_min": 1, "score_max": 5}, 44, 0),
        ("chug_features.jsonl", {"target": "mos", "score_min": 1, "score_max": 5}, 30, 1),
        ("vmaf_train_extract_features.parquet", {"target": "mos"}, 6, 0),
        ("bisect_features.parquet", {"target": "mos"}, 6, 0),
    ],
)
def test_samples_that_train(name, options, width, skipped):
    pairs = read_pairs([sample(name)], **options)
    assert (pairs.features.shape, pairs.skipped) == ((20 - skipped, width), skipped)
    assert not any(each.startswith(("mos", "enc_", "frame", "vmaf")) for each in pairs.feature_names)


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("vmaftune_corpus_v2.jsonl", "no features"),
        ("mos_corpus_konvid_1k.jsonl", "no features"),
        ("mos_corpus_aggregated.jsonl", "no features"),
        ("vmaftune_corpus_v3_as_written.jsonl", "every feature is missing in every row"),
        ("gpu_calibration.parquet", "no score"),
    ],
)
def test_samples_that_are_refused(name, reason):
    with pytest.raises(RecordedPairsError, match=reason):
        read_pairs([sample(name)])


def test_the_documentation_lists_every_form():
    text = (ROOT / "docs" / "training.md").read_text()
    for form in FORMS:
        assert f"| {form} |" in text, form


def test_a_feature_that_is_named_twice_is_told(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text("adm2,vmaf\n1,2\n")
    with pytest.raises(RecordedPairsError, match=r"^--features adm2,integer_adm2: adm2 is there more than once$"):
        read_pairs([path], features=["adm2", "integer_adm2"])
