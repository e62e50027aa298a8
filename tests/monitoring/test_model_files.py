"""Checkpoints over HTTP: whole, of the version that is said, and only they."""

from __future__ import annotations

import base64
import hashlib
import http.client
import itertools
import os
import shutil
import subprocess
import threading
from http import HTTPStatus

import pytest

import sidecar.monitoring.model_files as model_files_module
from sidecar.checkpoints.directory import promote, publish, share_stable, tenant_directory
from sidecar.consumer.follower import Follower
from sidecar.monitoring.history import History
from sidecar.monitoring.model_files import ModelFiles
from sidecar.monitoring.pages import Pages
from sidecar.monitoring.status import Status
from sidecar.network.address import parse_address
from tests.consumer.published import constant, publish_model, served
from tests.running import PATIENCE_S


@pytest.fixture
def directory(tmp_path):
    """Two checkpoints, of which the first is stable."""
    publish(tmp_path, b"first", {}, stable=True)
    publish(tmp_path, b"second", {})
    return tmp_path


@pytest.fixture
def address(directory):
    """Of a server of that directory."""
    with served(directory) as address:
        yield address


def ask(address, target, method="GET", **headers):
    connection = http.client.HTTPConnection(*parse_address(address), timeout=PATIENCE_S)
    connection.request(method, target, headers={name.replace("_", "-"): value for name, value in headers.items()})
    answer = connection.getresponse()
    body = answer.read()
    connection.close()
    return answer.status, answer.headers, body


def status_of(directory, name):
    return ModelFiles(directory).look_up(name, {}).status


@pytest.mark.parametrize("method", ["GET", "HEAD"])
@pytest.mark.parametrize(
    ("stem", "version"), [("stable", 1), ("latest", 2), ("model_v000001", 1), ("model_v000002", 2)]
)  # fmt: skip
def test_each_file_by_each_name_with_what_it_is(directory, address, stem, version, method):
    types = {"onnx": "application/octet-stream", "json": "application/json", "onnx.sha256": "text/plain; charset=utf-8"}
    for ending, content_type in types.items():
        code, headers, body = ask(address, f"/models/{stem}.{ending}?x=1", method)
        expected = (directory / f"model_v{version:06d}.{ending}").read_bytes()
        digest = hashlib.sha256(expected)
        assert (code, body) == (200, expected if method == "GET" else b"")
        assert headers["ETag"] == f'"{digest.hexdigest()}"'
        assert headers["Repr-Digest"] == f"sha-256=:{base64.b64encode(digest.digest()).decode()}:"
        assert headers["X-Vmafx-Model-Version"] == f"model_v{version:06d}"
        assert (headers["Content-Type"], headers["Content-Length"]) == (content_type, str(len(expected)))
        assert (headers["Cache-Control"], headers["Accept-Ranges"]) == ("no-cache", "none")


def test_a_range_is_not_cut_out(address):
    assert ask(address, "/models/stable.onnx", Range="bytes=1-2")[::2] == (200, b"first")


def test_who_has_a_file_is_not_sent_it_again_until_the_link_moves(directory, address):
    etag = ask(address, "/models/stable.onnx")[1]["ETag"]
    for known in (etag, f'"x", W/{etag}', "*"):
        code, headers, body = ask(address, "/models/stable.onnx", If_None_Match=known)
        assert (code, headers["ETag"], headers["X-Vmafx-Model-Version"], body) == (304, etag, "model_v000001", b"")
        assert (headers["Content-Length"], headers["Cache-Control"]) == (None, "no-cache")
    promote(directory, 2)
    assert ask(address, "/models/stable.onnx", If_None_Match=etag)[::2] == (200, b"second")


def test_a_server_that_has_just_started_knows_what_a_client_has(directory):
    etag = f'"{hashlib.sha256(b"first").hexdigest()}"'
    assert ModelFiles(directory).look_up("stable.onnx", {"if-none-match": etag}).status == HTTPStatus.NOT_MODIFIED


@pytest.mark.parametrize(
    "name",
    [
        "", "stable", "stable.onnx/", "stable.ONNX", "stable.onnx.sha512", "stable.onnx.json", "stable.sha256", ".lock",
        "state/run.json", "../secret", "..%2fsecret", "%2e%2e/secret", "/etc/passwd", "model_v1.onnx", "model_v000003.onnx",
        "model_v0000001.onnx", "model_v000001.onnx\n", "model_v000001.onnx\0", "model_v-00001.onnx", ".tmp-model_v000001.onnx",
        "model_v00000\u0661.onnx", "model_v" + "9" * 5000 + ".onnx",
    ],
)  # fmt: skip
def test_there_is_nothing_under_other_names(directory, name):
    (directory.parent / "secret").write_bytes(b"secret")
    (directory / ".tmp-model_v000001.onnx").write_bytes(b"half")
    assert status_of(directory, name) == HTTPStatus.NOT_FOUND


def test_there_is_nothing_where_nothing_is_published_or_the_directory_is_gone(tmp_path):
    for directory in (tmp_path, tmp_path / "nowhere"):
        assert status_of(directory, "stable.onnx") == status_of(directory, "model_v000001.onnx") == HTTPStatus.NOT_FOUND


def test_without_the_setting_there_are_no_models(directory):
    assert Pages(Status, History, directory, {}).look_up("/models/stable.onnx", {}).status == HTTPStatus.NOT_FOUND


def test_a_model_that_is_not_there_yet_has_no_json_and_no_digest(directory):
    (directory / "model_v000002.onnx").unlink()
    for ending in ("onnx", "json", "onnx.sha256"):
        assert status_of(directory, f"model_v000002.{ending}") == HTTPStatus.NOT_FOUND
        assert status_of(directory, f"latest.{ending}") == HTTPStatus.NOT_FOUND


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("model_v000001.onnx", b"firs"), ("model_v000001.onnx", b"second"), ("model_v000001.onnx", b""),
        ("model_v000001.json", b'{"version": 2}'), ("model_v000001.json", b'{"version": 1'), ("model_v000001.json", b"[1]"),
        ("model_v000001.json", b"[" * 100_000), ("model_v000001.json", b" " * (1 << 20) + b"1"),
        ("model_v000001.onnx.sha256", b"ab" * 16), ("model_v000001.onnx.sha256", b""),
    ],
)  # fmt: skip
def test_a_file_that_is_not_whole_or_of_another_version_is_not_given_out(directory, address, name, data):
    assert ask(address, f"/models/{name}")[0] == 200
    (directory / name).write_bytes(data)
    code, headers, _ = ask(address, f"/models/{name}")
    assert (code, headers["Retry-After"]) == (503, "1")
    assert (headers["ETag"], headers["X-Vmafx-Model-Version"]) == (None, None)


@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir, lambda path: path.symlink_to("/etc/hostname")])
def test_what_is_no_file_is_neither_read_nor_waited_for(directory, make):
    for name in ("model_v000001.onnx", "model_v000002.json"):
        (directory / name).unlink()
        make(directory / name)
        assert status_of(directory, name) in (HTTPStatus.NOT_FOUND, HTTPStatus.SERVICE_UNAVAILABLE)


def test_a_file_that_is_pruned_while_it_is_sent_is_sent_whole(directory, address):
    large = os.urandom(20_000_000)  # more than the system takes at once
    publish(directory, large, {}, stable=True)
    connection = http.client.HTTPConnection(*parse_address(address), timeout=PATIENCE_S)
    connection.request("GET", "/models/stable.onnx")
    answer = connection.getresponse()
    for path in directory.glob("model_*"):
        path.write_bytes(b"overwritten")
        path.unlink()
    assert answer.read() == large
    connection.close()


def test_what_is_being_sent_is_in_memory_once_and_bounded(directory, monkeypatch):
    monkeypatch.setattr(model_files_module, "MOST_SENT_BYTES", 8)
    files = ModelFiles(directory)
    first = files.look_up("stable.onnx", {})
    assert files.look_up("model_v000001.onnx", {}) is first
    refused = files.look_up("latest.onnx", {})
    assert (refused.status, dict(refused.headers)["Retry-After"]) == (HTTPStatus.SERVICE_UNAVAILABLE, "1")
    assert files.look_up("latest.onnx", {"if-none-match": "*"}).status == HTTPStatus.SERVICE_UNAVAILABLE
    del first
    assert files.look_up("latest.onnx", {}).body == b"second"
    assert files.look_up("stable.onnx", {"if-none-match": "*"}).status == HTTPStatus.NOT_MODIFIED


def test_digests_are_remembered_of_so_many_files(directory, monkeypatch):
    monkeypatch.setattr(model_files_module, "_MOST_KNOWN", 3)
    files = ModelFiles(directory)
    for stem, ending in itertools.product(("stable", "latest"), ("onnx", "json", "onnx.sha256")):
        assert files.look_up(f"{stem}.{ending}", {}).status == HTTPStatus.OK
    assert len(files._etags) == 3


def test_what_comes_is_always_of_the_version_that_is_said_while_others_publish_and_prune(directory, address):
    bodies = {1: b"first", 2: b"second"}
    ended = threading.Event()

    def publish_many():
        for version in range(3, 60):
            bodies[version] = f"{version}".encode() * 1000
            publish(directory, bodies[version], {}, stable=version % 2 == 0, keep=2)
        ended.set()

    thread = threading.Thread(target=publish_many)
    thread.start()
    seen = set()
    while not ended.is_set() or len(seen) < 2:
        for stem in ("stable", "latest"):
            code, headers, body = ask(address, f"/models/{stem}.onnx")
            assert code == 200
            version = int(headers["X-Vmafx-Model-Version"].removeprefix("model_v"))
            assert body == bodies[version]
            seen.add(version)
            code, headers, body = ask(address, f"/models/model_v{version:06d}.onnx.sha256")
            assert code == 404 or body.decode() == f"{hashlib.sha256(bodies[version]).hexdigest()}\n"
    thread.join()


def test_a_model_that_is_pruned_between_its_file_and_its_digest_is_looked_for_again(directory, monkeypatch):
    def read_digest(model):
        if model.name == "model_v000001.onnx":
            publish(directory, b"third", {}, stable=True, keep=1)
        return read(model)

    read = model_files_module.read_digest
    monkeypatch.setattr(model_files_module, "read_digest", read_digest)
    page = ModelFiles(directory).look_up("stable.onnx", {})
    assert (page.status, page.body) == (200, b"third")


def test_a_follower_takes_each_new_stable_model_once(directory, address):
    follower = Follower(f"http://{address}")
    for score in (20.0, 30.0):
        checkpoint = publish_model(directory, constant(score))
        news = follower.news()
        assert (news.version, news.data) == (checkpoint.version, checkpoint.model.read_bytes())
        assert follower.news() is None


def test_a_tenant_has_its_own_stable_model_or_the_shared_one(directory, address):
    mine = tenant_directory(directory, "a")
    follower = Follower(f"http://{address}", tenant="a")
    shared = publish_model(directory, constant(20.0))
    assert follower.news().data == shared.model.read_bytes()
    share_stable(mine)
    own = publish_model(mine, constant(30.0), stable=False)
    other = publish_model(directory, constant(25.0))
    assert (follower.news().name, follower.news()) == (other.name, None)
    own = publish_model(mine, constant(35.0))
    assert (own.version, follower.news().data) == (2, own.model.read_bytes())
    assert ask(address, "/models/tenants/a/latest.json")[1]["X-Vmafx-Model-Version"] == own.name
    assert ask(address, "/models/tenants/a/model_v000004.onnx")[0] == HTTPStatus.NOT_FOUND
    status, headers, body = ask(address, "/models/tenants/b/stable.json")
    assert (status, headers["Content-Location"], body) == (200, f"../../{other.name}.json", other.description.read_bytes())
    assert ask(address, "/models/tenants/../stable.json")[0] == HTTPStatus.NOT_FOUND


@pytest.mark.skipif(shutil.which("curl") is None, reason="needs curl")
def test_curl_follows_a_model_by_its_etag(directory, address, tmp_path):
    model, etag = tmp_path / "here.onnx", tmp_path / "here.etag"

    def fetch():
        command = ["curl", "--fail", "--silent", "--etag-save", etag, "--etag-compare", etag, "--output", model]
        written = [*command, "--write-out", "%{http_code}", f"http://{address}/models/stable.onnx"]
        return subprocess.run(written, capture_output=True, text=True, check=True).stdout

    assert (fetch(), model.read_bytes()) == ("200", b"first")
    assert (fetch(), model.read_bytes()) == ("304", b"first")
    promote(directory, 2)
    assert (fetch(), model.read_bytes()) == ("200", b"second")
