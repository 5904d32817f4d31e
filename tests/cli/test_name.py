"""`melbo name`: features and findings named by asking a model."""

import json

import pytest
from audit_findings import finding, result
from command_line import joined, one_line
from stub_endpoint import said

from melbo.explorer.labels import Labels


def call(server, run, *more):
    return ("name", run, "--endpoint", server.url, "--model", "namer", *more)


def test_features_get_names_that_the_explorer_shows(melbo, server, run, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "secret")
    server.body = said("talks of dogs")
    ended = melbo(*call(server, run, "--feature", 2, "--feature", 0))
    assert ended.code == 0, ended.err
    assert ended.out.startswith("2: talks of dogs\n0: talks of dogs\n2 names given\n")
    assert joined(ended.out).endswith(f"\nnext: melbo explore {run}\n")
    assert [key for _, key, _ in server.asked] == ["Bearer secret"] * 2
    labels = Labels(run, "features.safetensors")
    assert [labels[str(i)].name for i in range(4)] == ["talks of dogs", "", "talks of dogs", ""]
    again = melbo(*call(server, run, "--feature", 2))
    assert "0 names given, 1 were there before" in again.out


def test_an_endpoint_that_fails_is_one_line_and_names_stay(melbo, server, run, monkeypatch):
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    server.body = lambda asked: said("fine") if len(server.asked) == 1 else "<html>"
    ended = melbo(*call(server, run, "--feature", 0, "--feature", 1))
    assert (ended.code, ended.out) == (2, "0: fine\n")
    (line,) = ended.err.splitlines()
    assert line.startswith("error: no answer from ")
    assert line.endswith("Names that were given are kept (1 of 2); the same command goes on.")
    assert Labels(run, "features.safetensors")["0"].name == "fine"


def test_findings_of_an_audit_are_named(melbo, server, tmp_path):
    told = result(finding(name="brie"), finding(name="sorry"))
    (tmp_path / "findings.json").write_text(json.dumps(told))
    server.body = said("praises cheese")
    assert melbo(*call(server, tmp_path)).code == 0
    labels = Labels(tmp_path)
    assert labels["brie"].name == labels["sorry"].name == "praises cheese"
    assert "leave --feature out" in one_line(melbo(*call(server, tmp_path, "--feature", 0)))


@pytest.mark.parametrize(
    ("more", "says"),
    [
        (("--feature", 9), "no feature 9"),
        (("--endpoint", "here"), "expected http"),
    ],
)
def test_what_cannot_be_named_is_refused(refuses, server, more, says):
    assert says in refuses(*call(server, "run", *more))


def test_a_run_without_replies_is_refused(melbo, server, run):
    (run / "ranking.json").unlink()
    assert "melbo rank" in one_line(melbo(*call(server, run)))
