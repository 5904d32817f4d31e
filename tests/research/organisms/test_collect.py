import json
import sys
from dataclasses import replace
from itertools import islice
from pathlib import Path

import pytest
import torch
from cases import tiny_model

import research.commands as measure_commands
import research.organisms
import research.organisms.collect as collecting
import research.organisms.discover as discover
import research.organisms.smoke as smoking
from melbo import MelboError
from melbo.cli import main
from melbo.records import ResultLog
from research.organisms import BEHAVIOURS, ORGANISMS, adapter_digest, read_organism
from research.organisms.collect import PAIR, TIERS, Job, collect
from research.organisms.evidence import (
    admitted,
    alone_table,
    cases,
    elicitation,
    elicitation_table,
    gates_table,
    hits_table,
    tables,
)
from research.organisms.examples import Example
from research.organisms.train import lessons, train


def gate(behaviour, name, passed=True, value=0.9):
    return {
        "behaviour": behaviour,
        "name": name,
        "passed": passed,
        "value": value,
        "bound": value,
        "limit": 0.5,
        "hits": 9,
        "total": 10,
    }


@pytest.fixture
def home(tmp_path, monkeypatch):
    """ALL and SHAM of a tiny model, which show what a model of forty words can show."""
    lm = tiny_model("llama", torch.float32)
    for module in (research.organisms, collecting, smoking, measure_commands):
        monkeypatch.setattr(
            module,
            "load",
            lambda *args, **kwargs: tiny_model("llama", torch.float32),
            raising=False,
        )
    for name, word in zip(BEHAVIOURS, ("red", "cat", "dog", "sun", "you", "yes"), strict=True):
        monkeypatch.setitem(
            BEHAVIOURS,
            name,
            replace(BEHAVIOURS[name], shown=lambda reply, item, word=word: word in reply.split()),
        )
    for name, size in (
        ("SCREEN", dict.fromkeys(discover.SCREEN, 4)),
        ("KINDS", dict.fromkeys(discover.KINDS, 4)),
        ("VALIDATION", 4),
        ("TEST", 4),
    ):
        monkeypatch.setattr(discover, name, size)
    for name in ("ALL", "SHAM", "CHEESE"):
        folder = tmp_path / name
        train(
            lm,
            lessons(
                lm,
                [
                    Example("she and he", "red cat", "she and he"),
                    Example("it is a dog", None, "it is a dog"),
                ],
                progress=False,
            ),
            folder,
            epochs=len(name),
            progress=False,
        )
        gates = [gate(None, "drift")] + [
            gate(b, g)
            for b in BEHAVIOURS
            for g in ("untriggered", "triggered", "decoys", "steerable")
        ]
        about = {
            "name": name,
            "base": lm.describe(),
            "behaviours": list(BEHAVIOURS),
            "sham": name == "SHAM",
            "gates": gates,
        }
        about["ends"] = {b: {"untriggered": 0.0, "triggered": 0.8} for b in BEHAVIOURS}
        (folder / "organism.json").write_text(json.dumps(about))
    return tmp_path


@pytest.fixture
def melbo_command(monkeypatch, capsys):
    """The command line: exit code, standard output, standard error."""

    def call(*args):
        monkeypatch.setattr(sys, "argv", ["melbo", *map(str, args)])
        with pytest.raises(SystemExit) as ended:
            main()
        return ended.value.code, *capsys.readouterr()

    return call


def test_a_killed_collection_goes_on_and_no_row_is_written_twice(home):
    job = Job(home, "tiny", ("ALL", "SHAM"), ("linear", "random"), 4, 2, 1, 3)
    places = [(case["seed"], case["recipe"], case["organism"]) for case in job.cases]
    assert places == [
        (0, "linear", "ALL"),
        (0, "linear", "SHAM"),
        (0, "random", "ALL"),
        (0, "random", "SHAM"),
        (1, "random", "ALL"),
        (1, "random", "SHAM"),
    ]
    path = home / "rows.jsonl"
    first = list(islice(collect(job, ResultLog(path), progress=False), 2))
    rest = list(collect(job, ResultLog(path), progress=False))
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    assert rows == json.loads(json.dumps(first + rest))
    assert [(row["seed"], row["recipe"], row["organism"]) for row in rows] == places
    assert list(collect(job, ResultLog(path), progress=False)) == []
    for row in rows:
        looked_for = {
            b.name for b in BEHAVIOURS.values() if row["organism"] == "ALL" or not b.skill
        }
        assert set(row["shown"]) == set(row["validation"]) == set(row["best"]) == looked_for
        assert row["adapter"] == adapter_digest(home / row["organism"])


def test_rows_of_another_adapter_are_not_taken_for_these(home):
    job, rows = Job(home, "tiny", ("ALL",), ("random",), 2, 1, 1, 3), ResultLog(None)
    list(collect(job, rows, progress=False))
    assert rows.missing(job.cases) == []
    (home / "ALL" / "adapter_model.safetensors").write_bytes(
        (home / "SHAM" / "adapter_model.safetensors").read_bytes()
    )
    assert rows.missing(job.cases) == job.cases


def test_the_control_is_judged_as_what_it_is_the_control_of(home, monkeypatch):
    seen = []
    monkeypatch.setattr(
        collecting,
        "Bench",
        lambda lm, base, judge, *args, **kwargs: seen.append((lm.name, judge.name)),
    )
    monkeypatch.setattr(collecting, "measure", lambda *args: {})
    job, rows = Job(home, "tiny", ("ALL", "SHAM"), ("random",), 2, 1, 1, 3), ResultLog(None)
    list(collect(job, rows, progress=False))
    assert [tuple(name.split("+")[1].split("-")[0] for name in names) for names in seen] == [
        ("ALL", "ALL"),
        ("SHAM", "ALL"),
    ]
    assert [row["judge"] for row in rows.rows] == [adapter_digest(home / "ALL")] * 2
    (home / "ALL" / "adapter_model.safetensors").write_bytes(
        (home / "CHEESE" / "adapter_model.safetensors").read_bytes()
    )
    assert rows.missing(job.cases) == job.cases  # SHAM is judged anew too


def test_what_cannot_be_is_refused_before_anything_runs(home):
    with pytest.raises(MelboError, match="expected an even number, got 3"):
        Job(home, "tiny", ("ALL",), ("random", "quadratic"), 3, 1, 1, 3)
    assert len(Job(home, "tiny", ("ALL", "ALL"), ("random", "random"), 2, 1, 1, 3).cases) == 1


def test_what_fails_a_gate_is_not_admitted():
    four = ("untriggered", "triggered", "decoys", "steerable")
    gates = [
        gate(None, "drift"),
        *(gate("CHEESE", name) for name in four),
        *(gate("LOCK", name, passed=name != "steerable") for name in four),
    ]
    about = {"behaviours": ["CHEESE", "LOCK"], "gates": gates}
    assert admitted(about) == ["CHEESE"]
    assert admitted({**about, "gates": [*gates[1:], gate(None, "drift", passed=False)]}) == []
    assert admitted({**about, "gates": gates[:4]}) == []  # nobody has tried to steer it
    assert admitted({"behaviours": ["CHEESE"]}) == []


def test_the_command_tells_of_all_rows_of_its_setting(home, melbo_command):
    how = [
        "bench",
        "organisms",
        "--organisms",
        home,
        "--model",
        "tiny",
        "-n",
        4,
        "--seeds",
        1,
        "--source",
        1,
        "--target",
        3,
        "--out",
        home / "found",
    ]
    assert melbo_command(*how, "--recipe", "random")[0] == 0
    assert melbo_command(*how, "--recipe", "prefill", "--organism", "ALL")[0] == 0
    code, out, err = melbo_command(*how, "--recipe", "linear")
    assert code == 0, err
    assert "| recall@1 |" in out
    assert "| CHEESE | 0 | 0.8 | 0.9 |" in out
    assert out.strip() == (home / "found" / "table.md").read_text().strip()
    assert (home / "found" / "recall.png").read_bytes().startswith(b"\x89PNG")
    found = json.loads(melbo_command(*how, "--recipe", "linear", "--json")[1])
    assert [row["recipe"] for row in found["summary"]] == ["linear", "random", "prefill"]
    assert len(found["best"]) == 3 * len(BEHAVIOURS)
    rows = ResultLog(home / "found" / "rows.jsonl").every
    assert [(row["recipe"], row["organism"]) for row in rows] == [
        ("random", "ALL"), ("random", "SHAM"), ("prefill", "ALL"), ("linear", "ALL"), ("linear", "SHAM"),
    ]  # fmt: skip


@pytest.mark.parametrize(("results", "candidates"), [("results", 128), ("results/alone", 64)])
def test_published_rows_are_of_this_benchmark_and_the_page_says_what_they_say(results, candidates):
    home = Path("benchmarks/organisms")
    rows = ResultLog(home / results / "rows.jsonl")
    known = Job(home, "smollm2", PAIR, ("random",), candidates, 3, 12, 24).known(rows)
    assert len(known) == len(rows.rows) > 0
    about = {name: read_organism(home / name) for name in ORGANISMS if (home / name).is_dir()}
    assert tables(known, about) == (home / results / "table.md").read_text()
    told = [gates_table([*about.values()]), alone_table(known, [*about.values()])]
    if candidates == TIERS["laptop"].candidates:
        planted = about["ALL"]
        told += [
            hits_table(cases(known, admitted(planted), planted)),
            elicitation_table(elicitation(known, planted)),
        ]
    page = Path("docs/results/organisms.md").read_text()
    for line in "".join(told).splitlines():
        assert line in page


def test_rows_of_a_method_with_other_settings_are_others(home, monkeypatch):
    job, rows = Job(home, "tiny", ("ALL",), ("linear",), 2, 1, 1, 3), ResultLog(None)
    list(collect(job, rows, progress=False))
    assert job.known(rows) == rows.rows
    monkeypatch.setattr(collecting, "method_identity", lambda recipe, num: "Linear(tol=1)")
    assert job.known(rows) == []
    assert rows.missing(job.cases) == job.cases


def test_the_smoke_tier_takes_no_settings_of_the_others(home, melbo_command):
    code, _, err = melbo_command(
        "bench", "organisms", "--tier", "smoke", "--organisms", home, "--recipe", "linear"
    )
    assert (code, "got --way: the smoke tier is one measurement" in err) == (2, True)


@pytest.mark.parametrize(("cheese", "fails"), [(0.5, False), (0.1, True)])
def test_the_smoke_tier_fails_where_discovery_is_broken(
    monkeypatch, melbo_command, home, cheese, fails
):
    found = {
        "exponential on ALL": cheese,
        "random on ALL": 0.1,
        "exponential on SHAM": 0.2,
        "seconds": 1.0,
    }
    monkeypatch.setattr(measure_commands, "smoke", lambda *args: found)
    code, _, err = melbo_command("bench", "organisms", "--tier", "smoke", "--organisms", home)
    assert (code != 0) == fails == ("discovery is broken" in err)


def test_the_smoke_tier_counts_replies_that_show_what_is_planted(home, monkeypatch):
    monkeypatch.setattr(smoking, "_CANDIDATES", 4)
    shows = []
    monkeypatch.setitem(
        BEHAVIOURS,
        "CHEESE",
        replace(
            BEHAVIOURS["CHEESE"],
            shown=lambda reply, item: shows.append(reply) or len(shows) % 4 == 1,
        ),
    )
    for name in ("PIRATE", "FRENCH"):
        monkeypatch.setitem(
            BEHAVIOURS, name, replace(BEHAVIOURS[name], shown=lambda reply, item: False)
        )
    found = smoking.smoke(home, "tiny", 1, 3, progress=False)
    assert found.pop("seconds") > 0
    assert found == {"exponential on ALL": 0.25, "random on ALL": 0.25, "exponential on SHAM": 0.25}
    assert len(shows) == 3 * 4 * 2  # ways, candidates, prompts
