"""cfpo_verl.doctor.model: a folder with all of a model, or a hub that has it."""

import json
import struct
from http.server import BaseHTTPRequestHandler, HTTPServer
from threading import Thread

import pytest
from doctor_configs import failed, ok, quickstart, warnings, with_model

from cfpo_verl.doctor import model

ID = "somebody/some-model"


def write_weights(folder, name="model.safetensors", **shapes):
    """Write a safetensors file with a header and no data."""
    header = {key: {"dtype": "F32", "shape": shape, "data_offsets": [0, 0]} for key, shape in shapes.items()}
    text = json.dumps({"__metadata__": {"format": "pt"}, **header}).encode()
    (folder / name).write_bytes(struct.pack("<Q", len(text)) + text)


@pytest.fixture
def config():
    return quickstart()


@pytest.fixture
def hub(monkeypatch, tmp_path):
    """A hub of our own on this machine, which answers with a status."""
    statuses = []

    class Hub(BaseHTTPRequestHandler):
        def do_GET(self):
            body = json.dumps({"id": ID, "_id": "1", "sha": "0"}).encode()
            self.send_response(statuses[-1])
            if statuses[-1] == 404:
                self.send_header("X-Error-Code", "RepoNotFound")
            if statuses[-1] == 403:
                self.send_header("X-Error-Code", "GatedRepo")
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_args):
            pass

    server = HTTPServer(("127.0.0.1", 0), Hub)
    thread = Thread(target=server.serve_forever, daemon=True)
    thread.start()
    monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{server.server_port}")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    yield statuses
    server.shutdown()
    server.server_close()


def test_a_path_is_a_model_folder_with_weights(config, tmp_path):
    config.actor_rollout_ref.model.path = "Qwen/Qwen2.5-0.5B"
    assert list(model.check_model(config)) == []  # a hub id is another check's
    config.actor_rollout_ref.model.path = str(tmp_path / "nowhere")
    [problem] = failed(model.check_model(config))
    assert f"{tmp_path}/nowhere is not a model folder (no config.json in it)" in problem
    with_model(config, tmp_path / "model")
    [problem] = failed(model.check_model(config))
    assert "has a config.json but no weights" in problem
    write_weights(tmp_path / "model", embed=[10, 4], head=[4])
    [line] = ok(model.check_model(config))
    assert line.endswith("model, 44 parameters")


def test_parameters_of_all_files_are_counted(tmp_path):
    assert model.count_parameters(tmp_path) is None
    write_weights(tmp_path, "model-1.safetensors", a=[2, 3])
    write_weights(tmp_path, "model-2.safetensors", b=[5])
    assert model.count_parameters(tmp_path) == 11


def test_shape_of_a_model_of_several_modalities():
    assert model.attention_heads({"text_config": {"num_attention_heads": 16}}) == 16
    assert model.hidden_layers({}) is None


def test_a_torn_config_has_no_shape(config, tmp_path):
    with_model(config, tmp_path / "model")
    (tmp_path / "model" / "config.json").write_text("{")
    assert model.read_model_config(config) == {}


def test_a_hub_that_has_the_model(config, hub):
    hub.append(200)
    config.actor_rollout_ref.model.path = ID
    [warning] = warnings(model.check_hub(config))
    assert warning.startswith(f"{ID} is not in the cache: every node will download it")


@pytest.mark.parametrize(
    ("status", "message"),
    [
        (404, f"the hub has no model {ID}, or it is private"),
        (403, f"{ID} is gated: the hub asks you to accept its terms"),
        (503, "is not in the cache, and the hub cannot be reached (Server error '503"),
    ],
)
def test_a_hub_that_does_not_give_the_model(config, hub, status, message):
    hub.append(status)
    config.actor_rollout_ref.model.path = ID
    [problem] = failed(model.check_hub(config))
    assert message in problem


def test_no_hub_and_no_cache(config, hub, monkeypatch):
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")  # nobody listens there
    config.actor_rollout_ref.model.path = ID
    [problem] = failed(model.check_hub(config))
    assert f"{ID} is not in the cache, and the hub cannot be reached" in problem
    assert "hf download" in problem


def test_offline_and_no_cache(config, hub, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    config.actor_rollout_ref.model.path = ID
    [problem] = failed(model.check_hub(config))
    assert problem.startswith(f"actor_rollout_ref.model.path: {ID} is not in the cache, and HF_HUB_OFFLINE is set")


def test_what_is_neither_a_folder_nor_an_id(config, hub):
    config.actor_rollout_ref.model.path = "models/a/b/c"
    [problem] = failed(model.check_hub(config))
    assert "models/a/b/c is neither a folder nor a hub id" in problem


def test_a_model_in_the_cache_is_as_good_as_a_folder(config, hub, monkeypatch, tmp_path):
    snapshot = tmp_path / "cache" / "models--somebody--some-model" / "snapshots" / "abc"
    snapshot.mkdir(parents=True)
    (snapshot / "config.json").write_text('{"num_attention_heads": 14}')
    (snapshot.parents[1] / "refs").mkdir()
    (snapshot.parents[1] / "refs" / "main").write_text("abc")
    config.actor_rollout_ref.model.path = ID
    assert ok(model.check_hub(config)) == [f"{ID} is in the hub's cache"]
    assert model.attention_heads(model.read_model_config(config)) == 14
