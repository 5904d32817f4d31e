"""The whole audit on a tiny model, with an elicitor whose replies are written beforehand."""

import json
from dataclasses import dataclass, field

import pytest
import torch
from cases import tiny_model
from scripted import PLANTED, TEXTS, Script, speaker

from melbo import MelboError, Prompts
from melbo.audit.audit import FINDINGS, LOG, Audit
from melbo.audit.budget import Budget, Costs
from melbo.audit.parts import Parts
from melbo.audit.prove import ProofCosts
from melbo.discovery.draws import Temperature
from melbo.discovery.openings import Openings
from melbo.discovery.steered import Features
from melbo.records import ResultLog

BUDGET = 40_000


@dataclass(frozen=True)
class Failing:
    name: str = field(default="failing", init=False)
    description: str = field(default="fails", init=False)

    def candidates(self, lm, prompts, num, seed, progress):
        raise ZeroDivisionError("of my own")


@pytest.fixture(scope="module")
def lm():
    return speaker()


@pytest.fixture(scope="module")
def parts(lm):
    return Parts.split(Prompts.chat(lm, TEXTS))


def run(lm, parts, out, elicitors=None, **changes):
    tried = [Script(), Temperature()] if elicitors is None else elicitors
    settings = {"budget": BUDGET, "max_new_tokens": 10, "elicitors": tried, **changes}
    return Audit(lm, parts, **settings).run(out, progress=False)


def lasting(result):
    """The result without what differs between runs."""
    told = json.loads(json.dumps(result))
    del told["budget"]["seconds"], told["settings"]["environment"]
    return told


@pytest.fixture(scope="module")
def whole(lm, parts, tmp_path_factory):
    out = tmp_path_factory.mktemp("audit")
    return out, run(lm, parts, out)


def test_what_was_planted_is_the_first_finding(whole):
    _, result = whole
    first = result["findings"][0]
    assert set(first["words"]) == set(PLANTED)
    assert first["share"] == 1
    assert first["prompts"] == len(TEXTS) // 2
    assert first["unsteered"] < 0.2
    assert first["control"] < 0.2
    assert first["elicited_by"] == "script"
    assert first["reproduce"]["number"] % 3 == 0
    assert first["screening"]["elicitors"]["script"] > 0


def test_findings_are_written_and_every_share_of_the_budget_is_told(whole):
    out, result = whole
    assert json.loads((out / FINDINGS).read_text()) == json.loads(json.dumps(result))
    shares = {share["elicitor"]: share for share in result["budget"]["shares"]}
    assert set(shares) == {"script", "temperature"}
    assert 1 in shares["script"]["findings"]
    rows = ResultLog(out / LOG).rows
    assert result["budget"]["spent"] == round(sum(row.get("tokens", 0) for row in rows))
    assert result["budget"]["spent"] < 1.1 * BUDGET
    for name, share in shares.items():
        own = [row for row in rows if row["stage"] == "screen" and row["elicitor"] == name]
        assert share["replies"] == sum(len(row["replies"]) for row in own) > 0


@pytest.mark.parametrize("rows", [1, 2, 4, 6, 8])
def test_an_audit_that_was_cut_off_goes_on_to_the_same_findings(
    lm, parts, whole, tmp_path, monkeypatch, rows
):
    add = ResultLog.add

    def cut_off(self, row):
        if len(self.rows) == rows:
            raise KeyboardInterrupt
        add(self, row)

    monkeypatch.setattr(ResultLog, "add", cut_off)
    with pytest.raises(KeyboardInterrupt):
        run(lm, parts, tmp_path)
    assert len(ResultLog(tmp_path / LOG).rows) == rows
    assert not (tmp_path / FINDINGS).exists()
    monkeypatch.setattr(ResultLog, "add", add)
    assert lasting(run(lm, parts, tmp_path)) == lasting(whole[1])


def test_an_elicitor_that_fails_costs_its_share_and_not_the_audit(lm, parts, tmp_path):
    result = run(lm, parts, tmp_path, [Failing(), Script()])
    failing, script = result["budget"]["shares"]
    assert failing["error"] == "ZeroDivisionError: of my own"
    assert failing["replies"] == 0
    assert script["error"] is None
    assert set(result["findings"][0]["words"]) == set(PLANTED)


def test_an_elicitor_that_the_budget_does_not_pay_for_is_left_out_by_name(lm, parts, tmp_path):
    proof = ProofCosts.of(parts, 10, 1)
    a_proof = proof.controls + proof.a_theme
    from_first = Budget(BUDGET, Costs.of(parts.screening, 10, 1), 2, 1, a_proof)
    result = run(lm, parts, tmp_path, [Script(), Failing()], budget=from_first.least(2) - 1)
    script, left_out = result["budget"]["shares"]
    assert script["error"] is None
    assert left_out["error"] == f"left out: takes a budget of {from_first.least(2):,}"
    assert result["findings"]
    assert result["budget"]["spent"] < from_first.least(2)


def test_openings_and_directions_run_through_to_the_end(lm, parts, tmp_path):
    tried = [Openings(least=0.02), Features("random")]
    result = run(lm, parts, tmp_path, tried, budget=60_000)
    assert [share["error"] for share in result["budget"]["shares"]] == [None, None]
    assert all(share["candidates"] >= 4 for share in result["budget"]["shares"])
    for finding in [*result["findings"], *result["below"]]:
        about = finding["reproduce"]
        assert about["kind"] in ("opening", "direction", "amplified")
        assert ("folder" not in about) or (tmp_path / about["folder"] / "run.json").is_file()


def test_a_base_of_another_shape_is_refused_and_a_real_one_is_the_ordinary_speaker(
    lm, parts, tmp_path
):
    with pytest.raises(MelboError, match="cannot be the base"):
        run(lm, parts, tmp_path / "a", base=tiny_model("gpt2", torch.float32))
    base = speaker()
    with torch.no_grad():
        base.model.lm_head.weight += 0.1
    result = run(lm, parts, tmp_path / "b", [Script()], base=base)
    rows = ResultLog(tmp_path / "b" / LOG).rows
    assert [row["stage"] for row in rows].count("base") == 1
    every = [*result["findings"], *result["below"]]
    assert all(f["scores"]["ratio"] is not None and f["base"] is not None for f in every)
    assert set(result["findings"][0]["words"]) == set(PLANTED)


@pytest.mark.parametrize(("kind", "share"), [("script", 0.0), ("opening", 1.0)])
def test_a_base_is_made_to_begin_alike_where_a_beginning_is_forced(
    lm, parts, tmp_path, kind, share
):
    """A theme that the base shows too, once it is begun alike, is no finding of this model."""
    base = speaker()
    with torch.no_grad():
        base.model.lm_head.weight += 0.1
    result = run(lm, parts, tmp_path, [Script(kind)], base=base)
    every = [*result["findings"], *result["below"]]
    [found] = [f for f in every if set(f["words"]) == set(PLANTED)]
    assert found["share"] == 1
    assert found["base"] == pytest.approx(share, abs=0.2)
    assert (found in result["findings"]) == (kind == "script")


def test_settings_that_differ_from_those_of_the_folder_are_refused(lm, parts, whole):
    with pytest.raises(MelboError, match="budget was 40000, now 50000.*another folder"):
        run(lm, parts, whole[0], budget=50_000)


@pytest.mark.parametrize(
    ("texts", "said"),
    [(TEXTS[:11], "got 11 prompts: expected at least 12"), (TEXTS[:11] + TEXTS[:1], "in two of")],
)
def test_prompts_that_cannot_be_split_are_refused(lm, texts, said):
    with pytest.raises(MelboError, match=said):
        Parts.split(Prompts.chat(lm, texts))


def test_a_budget_that_is_too_small_is_refused_before_any_work(lm, parts, tmp_path):
    with pytest.raises(MelboError, match="raise the budget"):
        run(lm, parts, tmp_path, budget=100)
    assert not (tmp_path / LOG).exists()
