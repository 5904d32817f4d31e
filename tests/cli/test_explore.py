import socket

import pytest

from melbo.cli import explore

EXPLORE = ("explore", "run")


def test_a_folder_without_a_run_is_refused(refuses, tmp_path):
    assert "no run in" in refuses("explore", tmp_path)
    assert "no run in" in refuses("explore", "run", "nowhere")


def test_the_toolkit_is_asked_for_where_it_is_missing(refuses, monkeypatch):
    monkeypatch.setattr(explore, "find_spec", lambda name: None)
    assert "pip install 'melbo[explore]'" in refuses(*EXPLORE)


def test_a_port_that_is_taken_is_refused(refuses):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        assert f"cannot listen at 127.0.0.1:{port}" in refuses(*EXPLORE, "--port", port)


@pytest.mark.parametrize("host", ["192.0.2.1", "no such host"])
def test_an_address_of_another_machine_is_refused(refuses, host):
    assert f"cannot listen at {host}:8765" in refuses(*EXPLORE, "--host", host)
