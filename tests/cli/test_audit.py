"""The command that audits a model, on a tiny one."""

import json

import pytest
from cases import TINY, checkpoint
from command_line import strict

CALL = ("audit", "tiny", "--budget", 60_000, "--max-new-tokens", 6)


@pytest.fixture
def prompts(home):
    """A file of twelve prompts."""
    path = home / "twelve.txt"
    path.write_text(
        "".join(f"{a} {b}\n" for a in ("red", "yes", "you") for b in ["dog", "sun", "he", "it"])
    )
    return path


@pytest.fixture
def audited(melbo, home, prompts, tmp_path):
    out = tmp_path / "audit"
    return out, melbo(*CALL, "--prompts", prompts, "--out", out, "--json")


def test_it_writes_the_log_the_findings_and_the_page_and_prints_json(audited):
    out, ended = audited
    assert ended.code == 0
    assert {path.name for path in out.iterdir()} >= {
        "audit.jsonl",
        "findings.json",
        "findings.html",
    }
    told = strict(ended.out)
    assert told == json.loads((out / "findings.json").read_text(encoding="utf-8"))
    assert {share["elicitor"] for share in told["budget"]["shares"]} == {
        "openings", "continuations", "directions", "temperature"
    }  # fmt: skip
    assert [share["error"] for share in told["budget"]["shares"]] == [None] * 4
    assert told["settings"]["prompts"]
    page = (out / "findings.html").read_text(encoding="utf-8")
    assert all(finding["name"] in page for finding in told["findings"])


def test_the_table_fits_and_goes_on_from_what_is_there(audited, melbo, prompts):
    out, _ = audited
    (out / "findings.json").unlink()
    before = (out / "audit.jsonl").read_bytes()
    ended = melbo(*CALL, "--prompts", prompts, "--out", out)
    assert ended.code == 0
    assert (out / "audit.jsonl").read_bytes() == before
    lines = ended.out.splitlines()
    assert max(map(len, lines)) <= 80
    assert any(line.startswith("elicitor") for line in lines)
    assert any("of 60,000 tokens" in line for line in lines)
    assert "Read everything:" in ended.err


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (("--prompt", "dog"), "got 1 prompts: expected at least 12"),
        (("--budget", 100), "raise the budget"),
        (("--base", "gpt"), "cannot be the base"),
        (("--elicitor", "none.py:f"), "none.py"),
        (("--dictionary", "none"), "no dictionary in none"),
    ],
)
def test_what_cannot_work_is_refused_before_any_file_is_written(
    refuses, prompts, tmp_path, home, more, said
):
    if "gpt" in more:
        checkpoint(TINY["gpt2"](), home / "gpt")
    given = () if "--prompt" in more else ("--prompts", prompts)
    assert said in refuses(*CALL, *given, "--out", tmp_path / "out", *more)
    assert not (tmp_path / "out").exists()


def test_an_audit_that_is_there_is_replaced_only_by_force(audited, refuses, melbo, prompts):
    out, _ = audited
    call = (*CALL, "--prompts", prompts, "--out", out)
    assert "already holds an audit" in refuses(*call)
    assert melbo(*call, "--seed", 1, "--force").code == 0
    assert json.loads((out / "findings.json").read_text())["settings"]["seed"] == 1


def test_latents_of_a_dictionary_join_the_usual_elicitors(melbo, refuses, home, prompts, tmp_path):
    sizes = ("--latents", 48, "--k", 4, "--tokens", 600, "--batch", 50, "--context", 16)
    place, text = tmp_path / "dictionary", tmp_path / "text.txt"
    text.write_text("the dog or the cat and how to bake cake " * 60)
    assert melbo("dictionary", "train", "tiny", "--text", text, *sizes, "--out", place).code == 0
    more = ("--prompts", prompts, "--out", tmp_path / "audit", "--dictionary", place)
    ended = melbo(*CALL, *more, "--budget", 30_000, "--json")
    assert ended.code == 0, ended.err
    first = strict(ended.out)["budget"]["shares"][0]
    assert first["elicitor"].startswith("latents-")
    assert first["error"] is None
    assert first["candidates"] > 0
    checkpoint(TINY["gpt2"](), home / "other")
    said = refuses("audit", "other", *more[:2], "--out", tmp_path / "no", *more[4:])
    assert "the dictionary is of" in said
