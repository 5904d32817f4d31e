"""The command that forces openings."""

import json

import pytest
from command_line import PROMPT, strict

import melbo as library
from melbo import Prompts
from melbo.discovery.continuations import beginnings
from melbo.discovery.openings import Openings
from melbo.evaluation.scores import FLAGS

CALL = ("openings", "tiny", "--num", 8, "--max-new-tokens", 5)


def test_it_prints_the_models_own_reply_and_one_of_each_opening(melbo):
    ended = melbo(*CALL, "--prompt", "dog", "--top", 3)
    assert (ended.code, ended.err) == (0, "")
    lines = ended.out.splitlines()
    assert lines[0] == "dog"
    assert lines[3].split() == ["opening", "probability", "reply"]
    assert len([line for line in lines if line.startswith("'")]) == 3
    assert lines[-2].startswith("8 openings: ")
    assert lines[-1] == "next: melbo audit tiny --out audits/new"
    assert max(map(len, lines)) <= 80


def test_json_holds_all_replies_in_the_order_of_the_table(melbo, home):
    ended = melbo(*CALL, "--prompt", "dog", "--prompts", "good.txt", "--json")
    assert (ended.code, ended.err) == (0, "")
    said = strict(ended.out)
    lm = library.load(str(home / "tiny"))
    prompts = Prompts.chat(lm, ["dog", "he or she", "red or blue ?"])
    found, _ = Openings().candidates(lm, prompts, 8, 0, False)
    table = found.replies(lm, prompts, 5, unsteered=True, progress=False)
    assert said["prompts"] == list(prompts.texts)
    assert said["unsteered"] == [c.text for c in table.of("unsteered")]
    replies = {
        o.tokens: [c.text for c in table.of("feature", i)] for i, o in enumerate(found.openings)
    }
    assert {tuple(o["tokens"]): o["replies"] for o in said["openings"]} == replies
    order = [(FLAGS.index(o["flag"]), -o["novel"]) for o in said["openings"]]
    assert order == sorted(order)
    probabilities = {o.tokens: o.probability for o in found.openings}
    for o in said["openings"]:
        assert o["probability"] == pytest.approx(probabilities[tuple(o["tokens"])])
        assert all(reply.startswith(o["opening"].strip()) for reply in o["replies"])


def test_built_in_prompts_are_used_if_none_are_given(melbo):
    ended = melbo(*CALL)
    assert (ended.code, ended.err) == (0, "")
    assert ended.out.startswith("1. What should I do this weekend?\n")
    assert "4. Describe a walk through the city.\n" in ended.out


def test_all_replies_go_to_a_file_which_is_replaced_only_by_force(melbo, refuses, tmp_path):
    out = tmp_path / "replies.jsonl"
    call = (*CALL, "--prompt", "dog", "--prompt", PROMPT, "--out", out)
    assert melbo(*call).code == 0
    rows = [json.loads(line) for line in out.read_text(encoding="utf-8").splitlines()]
    assert [row["prompt"] for row in rows[:2]] == ["dog", PROMPT]
    assert [row["opening"] for row in rows[:2]] == [None, None]
    assert len(rows) == 2 + 2 * 8
    assert all(row["text"].startswith(row["opening"]) for row in rows[2:])
    out.write_text("mine")
    assert "already holds replies.jsonl" in refuses(*call)
    assert out.read_text() == "mine"
    assert melbo(*call, "--force").code == 0
    assert len(out.read_text().splitlines()) == 18


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (("--num", 0), "0 is not in the range"),
        (("--prompts", "empty.txt"), "empty.txt"),
        (("--prompts", "nowhere.txt"), "nowhere.txt"),
        (("--text", "--system", "x"), "needs a chat template"),
        (("--max-new-tokens", 5000), "reads at most 64"),
        (("--device", "moon"), "moon"),
    ],
)
def test_bad_input_is_one_line(refuses, more, said):
    assert said in refuses(*CALL, *more)


def test_a_model_without_a_template_is_refused_or_read_as_text(melbo, refuses):
    assert "chat template" in refuses("openings", "mute", "--num", 2)
    ended = melbo(
        "openings", "mute", "--num", 2, "--text", "--prompt", "dog", "--max-new-tokens", 3
    )
    assert ended.code == 0


def test_openings_of_ones_own_are_forced_at_the_start_or_after_a_sentence(melbo, home):
    call = (*CALL[:2], "--max-new-tokens", 8, "--prompt", "dog", "--opening", "cat", "--json")
    first, after = (strict(melbo(*call, *more).out) for more in ((), ("--after-sentence",)))
    (at_start,), (later,) = first["openings"], after["openings"]
    assert at_start["opening"] == later["opening"] == "cat"
    assert at_start["probability"] is later["probability"] is None
    assert at_start["replies"][0].startswith("cat")
    lm = library.load(str(home / "tiny"))
    (begun,) = beginnings(lm, Prompts.chat(lm, ["dog"]), 4)
    said = lm.tokenizer.decode(begun)
    assert later["replies"][0].startswith(said)
    assert later["replies"][0].removeprefix(said).split()[0] == "cat"


def test_a_blank_opening_is_refused(refuses):
    assert "got the opening ' '" in refuses(*CALL, "--prompt", "dog", "--opening", " ")
