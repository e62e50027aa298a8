"""Each new model once, verified, from a directory and over HTTP alike."""

from __future__ import annotations

import hashlib
import json
import os
import shutil

import numpy as np
import pytest

from onnx_builder.write import to_bytes
from sidecar.checkpoints.directory import promote
from sidecar.consumer.follower import Follower
from sidecar.consumer.source import SourceError
from sidecar.consumer.verified import RefusedError
from tests.consumer.published import ROW, WIDTH, ModelServer, constant, publish_model, score_of


@pytest.fixture
def directory(tmp_path):
    return tmp_path / "checkpoints"


@pytest.fixture(params=["directory", "link", "http"])
def follow(request, directory):
    """Makes a follower of the directory: by its path, by that of a link in it, or by the URL of a server."""
    if request.param != "http":
        yield lambda: Follower(directory if request.param == "directory" else directory / "stable.onnx")
        return
    with ModelServer(directory).running() as server:
        yield lambda: Follower(server.url)


@pytest.fixture
def server(directory):
    with ModelServer(directory).running() as running:
        yield running


def test_each_model_comes_once(follow, directory):
    follower = follow()
    with pytest.raises(SourceError, match="no such"):
        follower.news()
    publish_model(directory, constant(20))
    found = follower.news()
    assert (found.name, found.version, found.data) == ("model_v000001", 1, to_bytes(constant(20)))
    assert found.network.forward(ROW[None])[0] == pytest.approx(score_of(20))
    assert follower.news() is None
    publish_model(directory, constant(30))
    publish_model(directory, constant(40))
    assert follower.news().version == 3
    assert follower.news() is None
    promote(directory, 1)
    assert follower.news().version == 1


def test_an_unstable_checkpoint_is_no_news_but_to_those_who_follow_the_latest(follow, directory):
    follower, latest = follow(), Follower(directory, "latest")
    publish_model(directory, constant(20))
    assert follower.news().version == latest.news().version == 1
    publish_model(directory, constant(30), stable=False)
    assert follower.news() is None
    assert latest.news().version == 2


def test_a_pinned_version_is_that_one_whatever_comes(directory, server):
    for score in (20, 30, 40):
        publish_model(directory, constant(score))
    for source in (directory, server.url):
        follower = Follower(source, "pinned", 2)
        assert follower.news().version == 2
        assert follower.news() is None
    directory.joinpath("model_v000007.onnx").symlink_to("model_v000003.onnx")
    with pytest.raises(RefusedError, match="is model_v000003; expected version 7"):
        Follower(directory, "pinned", 7).news()
    server.change = lambda target, answer: (200, {**answer[1], "X-Vmafx-Model-Version": "model_v000003"}, answer[2])
    with pytest.raises(RefusedError, match="is model_v000003; expected version 2"):
        Follower(server.url, "pinned", 2).news()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("",), "source='': expected a checkpoint directory"),
        (("x", "newest"), "policy='newest': expected one of 'latest-stable', 'latest', 'pinned'"),
        (("x", "pinned"), "version=None: expected the number of a version, from 1"),
        (("x", "pinned", 0), "version=0: expected"),
        (("x", "latest", 3), "version=3: only with the policy 'pinned'"),
        (("x/stable.onnx", "latest"), "policy='latest': expected a checkpoint directory with it, got x/stable.onnx"),
        (("ftp://x",), "ftp://x: expected http://HOST:PORT"),
        (("http://x:99999",), "http://x:99999: Port out of range"),
        (("http://x/models/stable.onnx",), "the path before /models"),
        (("http://user@x",), "without a user"),
    ],
)
def test_what_cannot_be_followed_is_an_error_that_says_what_can(arguments, message):
    with pytest.raises(ValueError, match=message):
        Follower(*arguments)


def _rewrite_json(checkpoint, **changed):
    about = json.loads(checkpoint.description.read_text())
    checkpoint.description.write_text(json.dumps({**about, **changed}))


def _other_model(checkpoint):
    checkpoint.model.write_bytes(to_bytes(constant(77)))


def _other_model_and_digest(checkpoint):
    _other_model(checkpoint)
    checkpoint.digest.write_text(hashlib.sha256(to_bytes(constant(77))).hexdigest())


def _half(checkpoint):
    checkpoint.model.write_bytes(checkpoint.model.read_bytes()[:-20])


def _no_model(checkpoint):
    data = b"not a model"
    checkpoint.model.write_bytes(data)
    checkpoint.digest.write_text(hashlib.sha256(data).hexdigest())
    _rewrite_json(checkpoint, sha256=hashlib.sha256(data).hexdigest())


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (_other_model, "digest: the file's SHA-256 is"),
        (_other_model_and_digest, "its JSON says sha256"),
        (_half, "digest: the file's SHA-256 is"),
        (_no_model, "not an ONNX model"),
        (lambda checkpoint: checkpoint.digest.write_text("0" * 64), "its JSON says sha256"),
        (lambda checkpoint: _rewrite_json(checkpoint, version=1), "its JSON says version 1; expected 2"),
        (lambda checkpoint: _rewrite_json(checkpoint, sha256=None), "its JSON says sha256 None"),
        (lambda checkpoint: _rewrite_json(checkpoint, n_features=4), "its JSON says n_features 4, the graph 3"),
        (lambda checkpoint: _rewrite_json(checkpoint, onnx_has_scaler=False), "not which scaling"),
        (lambda checkpoint: checkpoint.description.write_text("{"), "its JSON is none"),
        (lambda checkpoint: checkpoint.description.write_text("[]"), "its JSON is not an object, but list"),
    ],
)
def test_what_is_not_whole_and_of_one_version_is_refused_once_and_taken_when_it_is(follow, directory, damage, message):
    follower = follow()
    publish_model(directory, constant(20))
    assert follower.news().version == 1
    checkpoint = publish_model(directory, constant(30))
    whole = {path: path.read_bytes() for path in (checkpoint.model, checkpoint.digest, checkpoint.description)}
    damage(checkpoint)
    with pytest.raises(RefusedError, match=message):
        follower.news()
    assert follower.news() is None
    for path, data in whole.items():
        path.write_bytes(data)
    assert follower.news().version == 2


def test_files_that_were_only_touched_are_no_news(directory):
    checkpoint = publish_model(directory, constant(20))
    follower = Follower(directory)
    assert follower.news().version == 1
    os.utime(checkpoint.model)
    assert follower.news() is None


def test_a_model_that_does_not_fit_is_refused_by_whoever_follows(directory):
    def accept(model):
        if model.version == 2:
            raise RefusedError("no")

    follower = Follower(directory, accept=accept)
    for expected in (1, None, 3):
        publish_model(directory, constant(20 + (expected or 0)))
        if expected is None:
            with pytest.raises(RefusedError, match="no"):
                follower.news()
            assert follower.news() is None
        else:
            assert follower.news().version == expected


def test_a_directory_that_vanishes_is_told_until_it_is_back(follow, directory, tmp_path):
    publish_model(directory, constant(20))
    follower = follow()
    assert follower.news().version == 1
    directory.rename(tmp_path / "elsewhere")
    for _ in range(2):
        with pytest.raises(SourceError):
            follower.news()
    shutil.copytree(tmp_path / "elsewhere", directory, symlinks=True)
    assert follower.news() is None, "it is the same model"
    publish_model(directory, constant(30))
    assert follower.news().version == 2


def test_a_link_to_something_else_and_a_file_that_is_too_large_are_told(directory, monkeypatch):
    checkpoint = publish_model(directory, constant(20))
    directory.joinpath("mine.onnx").write_bytes(checkpoint.model.read_bytes())
    for ending in (".onnx.sha256", ".json"):
        directory.joinpath(f"mine{ending}").write_bytes(b"x")
    with pytest.raises(SourceError, match=r"points to mine\.onnx; expected a checkpoint, model_vNNNNNN\.onnx"):
        Follower(directory / "mine.onnx").news()
    with checkpoint.description.open("ab") as file:
        file.truncate((1 << 20) + 1)
    with pytest.raises(SourceError, match=r"model_v000001\.json: larger than 1,048,576 bytes"):
        Follower(directory).news()


def test_the_scaling_and_the_names_that_a_json_states_come_with_the_model(directory):
    names = ["integer_adm2", "vif_scale0", "motion2"]
    scaling = {"feature_mean": [1.0, 2.0, 3.0], "feature_std": [0.5, 0.5, 0.5], "onnx_has_scaler": False}
    publish_model(directory, constant(20), feature_order=names, **scaling)
    model = Follower(directory).news()
    assert model.inputs.names == ("adm2", "vif_scale0", "motion2")
    assert [step.operator for step in model.scaling] == ["Sub", "Div"]
    assert model.scaling[0].value.tolist() == [1, 2, 3]
    assert model.interface.score_range == (0, 100)


def test_over_http_an_unchanged_model_is_one_request_without_a_body(directory, server):
    publish_model(directory, constant(20))
    follower = Follower(server.url)
    assert follower.news().version == 1
    name = "/models/model_v000001"
    assert server.asked == [("/models/stable.onnx", 200), (f"{name}.onnx.sha256", 200), (f"{name}.json", 200)]
    server.asked.clear()
    assert follower.news() is None
    assert server.asked == [("/models/stable.onnx", 304)]


def test_equal_weights_under_another_version_are_another_model(follow, directory):
    follower = follow()
    for version in (1, 2):
        publish_model(directory, constant(20))
        assert follower.news().version == version
        assert follower.news() is None


def test_what_lies_beside_a_model_is_asked_for_by_its_version_though_the_link_has_moved(directory, server):
    publish_model(directory, constant(20))

    def change(target, answer):
        if target == "/models/stable.onnx" and server.asked == []:
            publish_model(directory, constant(30))
        return answer

    server.change = change
    follower = Follower(server.url)
    assert follower.news().version == 1
    assert follower.news().version == 2


def _headers(**changed):
    return lambda target, answer: (answer[0], {**answer[1], **changed}, answer[2])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_headers(**{"X-Vmafx-Model-Version": "../etc"}), r"X-Vmafx-Model-Version is '\.\./etc'; expected model_vNNNNNN"),
        (lambda target, answer: (200, {}, answer[2]), "X-Vmafx-Model-Version is ''"),
        (_headers(**{"Repr-Digest": "sha-256=:AAAA:"}), "what came is not what its Repr-Digest says"),
        (lambda target, answer: (200, answer[1], answer[2] + b"x"), "what came is not what its Repr-Digest says"),
        (lambda target, answer: (302, {"Location": target}, b""), "answered 302; redirects are not followed"),
        (lambda target, answer: (500, {}, b"oops"), "answered 500"),
        (lambda target, answer: (304, {}, b""), "answered 304$"),
        (_headers(**{"Content-Encoding": "gzip"}), "came as gzip, though only the file as it is was asked for"),
        (_headers(**{"Content-Length": "x"}), "bad Content-Length"),
        (_headers(**{"Content-Length": "60000000"}), "peer closed connection"),
        (lambda target, answer: (200, answer[1], bytes(50_000_001)), "more than 50,000,000 bytes"),
    ],
)
def test_a_server_that_lies_is_not_believed_and_asked_again(directory, server, change, message):
    publish_model(directory, constant(20))
    follower = Follower(server.url)
    server.change = change
    for _ in range(2):
        with pytest.raises(SourceError, match=message):
            follower.news()
    server.change = lambda target, answer: answer
    assert follower.news().version == 1


def test_a_server_without_etags_gives_a_model_once_too(directory, server):
    publish_model(directory, constant(20))
    server.change = lambda target, answer: (200, {"X-Vmafx-Model-Version": answer[1]["X-Vmafx-Model-Version"]}, answer[2])
    follower = Follower(server.url)
    assert follower.news().version == 1
    assert follower.news() is None


def test_a_model_that_was_damaged_on_its_way_is_asked_for_again(directory, server):
    publish_model(directory, constant(20))
    damage = [b"x"]

    def change(target, answer):
        headers = {name: value for name, value in answer[1].items() if name != "Repr-Digest"}
        return answer[0], headers, answer[2] + (damage.pop() if target.endswith(".onnx") and damage else b"")

    server.change = change
    follower = Follower(server.url)
    with pytest.raises(RefusedError, match="digest: the file's SHA-256 is"):
        follower.news()
    assert follower.news().version == 1
    server.asked.clear()
    assert follower.news() is None
    assert server.asked == [("/models/stable.onnx", 304)]


def test_an_etag_may_have_any_letters(directory, server):
    publish_model(directory, constant(20))
    server.change = _headers(ETag='"\xe9"')
    follower = Follower(server.url)
    assert follower.news().version == 1
    assert follower.news() is None


def test_a_path_before_models_is_a_proxys(directory, server):
    publish_model(directory, constant(20))
    found = server._found
    server._found = lambda target: found(target.removeprefix("/vmafx")) if target.startswith("/vmafx/") else (404, {}, b"")
    assert Follower(f"{server.url}/vmafx/").news().version == 1
    with pytest.raises(SourceError, match=r"/models/stable\.onnx: answered 404; there is no such model, or the sidecar runs"):
        Follower(server.url).news()


def test_no_answer_is_told_with_the_reason():
    with pytest.raises(SourceError, match=r"http://127\.0\.0\.1:1/models/stable\.onnx: no answer: Connection refused"):
        Follower("http://127.0.0.1:1").news()


def test_parity_is_looked_at(directory, monkeypatch):
    publish_model(directory, constant(20))
    monkeypatch.setattr("sidecar.checkpoints.verify.probe_features", lambda network, count: np.full((2, WIDTH), np.nan))
    with pytest.raises(RefusedError, match="parity"):
        Follower(directory).news()
