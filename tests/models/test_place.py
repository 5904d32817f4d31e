"""Names of models: what leads nowhere is refused before anything is loaded or waited for."""

import socket
import time

import pytest

from melbo import MelboError, load
from melbo.models.loading import place
from melbo.models.loading.place import find_place


@pytest.fixture
def lonely(monkeypatch, tmp_path):
    """A folder to work in, an empty cache, and a hub that nobody answers for."""
    monkeypatch.chdir(tmp_path)
    for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "HF_HUB_CACHE", "https_proxy"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    monkeypatch.setattr("urllib.request.getproxies", dict)
    monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{port}")
    return tmp_path


@pytest.fixture
def no_wait(monkeypatch):
    """A failure where the hub would be waited for."""

    def fail(*args, **more):
        raise AssertionError("the network was asked")

    monkeypatch.setattr(socket, "create_connection", fail)


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("smolm2", "no model 'smolm2'.*did you mean 'smollm2'"),
        ("SmolLM2", "no model 'SmolLM2'.*did you mean 'smollm2'"),
        ("./nowhere", "nothing at this path"),
        ("/a/b/c", "nothing at this path"),
        ("~/model", "nothing at this path"),
        ("hollow", "the folder holds no config.json"),
        ("./my-modle", "did you mean 'my-model'"),
        ("models/lama", "did you mean 'models/llama'"),
        ("mine.gguff", "did you mean 'mine.gguf'"),
        ("mone.gguf", "no file mone.gguf: expected a .gguf file; did you mean 'mine.gguf'"),
        ("", "nothing at this path"),
        ("a\0b", "nothing at this path"),
    ],
)
def test_names_that_lead_nowhere(lonely, name, says):
    for folder in ("hollow", "my-model", "models/llama"):
        (lonely / folder).mkdir(parents=True)
    (lonely / "mine.gguf").touch()
    with pytest.raises(MelboError, match=says):
        find_place(name)


def test_what_is_here_is_found_without_the_network(lonely, no_wait):
    (lonely / "model").mkdir()
    (lonely / "model" / "config.json").touch()
    (lonely / "lora").mkdir()
    (lonely / "lora" / "adapter_config.json").touch()
    (lonely / "mine.gguf").touch()
    assert all(map(find_place, ("smollm2", "model", "./lora", "mine.gguf")))


@pytest.mark.parametrize("name", ["some-org/some-model", "gpt2"])
def test_a_hub_id_needs_the_hub_or_the_cache(lonely, monkeypatch, name):
    with pytest.raises(MelboError, match=f"no model '{name}'.*the hub cannot be reached"):
        find_place(name)
    (lonely / "hf" / "hub" / f"models--{name.replace('/', '--')}").mkdir(parents=True)
    assert find_place(name) is False
    with socket.create_server(("127.0.0.1", 0)) as hub:
        monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{hub.getsockname()[1]}")
        assert find_place(name) is True
        assert find_place("another/model") is True


@pytest.mark.parametrize("name", ["HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"])
def test_whoever_says_that_there_is_no_network_does_not_wait_for_it(
    lonely, no_wait, monkeypatch, name
):
    monkeypatch.setenv(name, "1")
    with pytest.raises(MelboError, match="hub cannot be reached"):
        find_place("some-org/some-model")


def test_behind_a_proxy_the_hub_is_asked_by_transformers(lonely, no_wait, monkeypatch):
    monkeypatch.setattr("urllib.request.getproxies", lambda: {"http": "http://proxy"})
    assert find_place("some-org/some-model") is True


def test_a_lookup_of_the_host_that_hangs_is_given_up(lonely, monkeypatch):
    monkeypatch.setattr(place, "_PATIENCE", 0.05)
    monkeypatch.setattr(socket, "create_connection", lambda *a: time.sleep(0.5) or socket.socket())
    with pytest.raises(MelboError, match="hub cannot be reached"):
        find_place("some-org/some-model")


def test_loading_asks_nothing_of_a_hub_that_does_not_answer(lonely):
    """A model of the cache is read without waiting for the hub, file by file."""
    folder = lonely / "hf" / "hub" / "models--some-org--some-model"
    folder.mkdir(parents=True)
    with pytest.raises(MelboError, match="no model 'some-org/some-model'"):
        load("some-org/some-model")
