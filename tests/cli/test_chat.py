import io
import sys

import pytest
import torch
from cases import tiny_model
from talking import a_chat, assistant, by_hand, features_of, some_features, user

from melbo import MelboError, generate, steer
from melbo.cli.chat import Chat
from melbo.models.text.prompts import Prompts


@pytest.fixture(scope="module")
def lm():
    return tiny_model("llama")


@pytest.mark.parametrize(
    ("feature", "strength"), [(None, 1.0), (0, 1.0), (1, 1.0), (2, -0.5), (1, 0.0)]
)
def test_a_reply_is_the_greedy_one_of_the_steered_model(lm, feature, strength):
    chat = a_chat(lm, feature, strength)
    steering = None if feature is None else steer(lm, chat.features[feature], strength=strength)
    prompt = "Tell me how to bake a cake"
    assert chat.reply(prompt) == by_hand(lm, [user(prompt)], steering=steering)


def test_features_make_a_difference_here(lm):
    prompt = "Tell me how to bake a cake"
    replies = {a_chat(lm, feature).reply(prompt) for feature in (None, 0, 1, 2)}
    assert len(replies) > 1


def test_a_first_reply_is_what_generate_says(lm):
    prompts = Prompts.chat(lm, ["red or blue"])
    table = generate(lm, prompts, some_features(lm), max_new_tokens=5, progress=False)
    assert a_chat(lm).reply("red or blue") == table.of("unsteered")[0].text
    for i in range(3):
        assert a_chat(lm, i).reply("red or blue") == table.of("feature", i)[0].text


def test_the_first_token_is_left_alone_where_the_fit_left_it_alone(lm):
    features = some_features(lm, skip_first=True)
    expected = by_hand(lm, [user("red or blue")], steering=steer(lm, features[1]))
    assert Chat(lm, features, 1, 1.0, 5).reply("red or blue") == expected


def test_the_conversation_so_far_is_sent(lm):
    chat = a_chat(lm, 1)
    first = chat.reply("Tell me how to bake a cake")
    chat.command("/off")
    second = chat.reply("yes")
    turns = [user("Tell me how to bake a cake"), assistant(first), user("yes")]
    assert second == by_hand(lm, turns)
    assert chat.turns == [*turns, assistant(second)]
    chat.command("/feature 2")
    turns = [*turns, assistant(second), user("no")]
    assert chat.reply("no") == by_hand(lm, turns, steering=steer(lm, chat.features[2]))


def test_history_matters_here(lm):
    chat = a_chat(lm)
    replies = [chat.reply("yes") for _ in range(3)]
    assert len(set(replies)) > 1


@pytest.mark.parametrize("system", ["Sure he is a dog", ""])
def test_the_system_message_of_the_run_is_used(lm, system):
    chat = a_chat(lm, system=system)
    before = {"role": "system", "content": system}
    first = chat.reply("red or blue")
    assert first == by_hand(lm, [before, user("red or blue")])
    turns = [before, user("red or blue"), assistant(first), user("yes")]
    assert chat.reply("yes") == by_hand(lm, turns)
    chat.command("/reset")
    assert chat.reply("red or blue") == first  # it outlives a reset


def test_a_run_that_says_nothing_of_prompts_has_no_system_message(lm):
    chat = Chat(lm, features_of(lm, {}), None, 1.0, 5)
    assert chat.reply("red or blue") == by_hand(lm, [user("red or blue")])


def test_commands_change_what_steers(lm):
    chat = a_chat(lm)
    assert chat.command("/feature 2") == "feature 2 × 1"
    assert chat.command("/strength -0.5") == "feature 2 × -0.5"
    assert (chat.feature, chat.strength) == (2, -0.5)
    assert chat.command("/off") == "unsteered"
    assert chat.feature is None
    assert chat.command("/feature 0") == "feature 0 × -0.5"
    chat.reply("yes")
    assert chat.command("/reset") == "feature 0 × -0.5"
    assert chat.turns == []
    steering = steer(lm, chat.features[0], strength=-0.5)
    assert chat.reply("no") == by_hand(lm, [user("no")], steering=steering)


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("/feature", "needs a number"),
        ("/feature one", "needs a number"),
        ("/feature 1.5", "needs a number"),
        ("/feature 3", "expected 0 to 2"),
        ("/feature -1", "expected 0 to 2"),
        ("/feature 99999999999999999999", "expected 0 to 2"),
        ("/strength", "needs a number"),
        ("/strength very", "needs a number"),
        ("/strength nan", "number"),
        ("/strength inf", "number"),
        ("/steer", "needs a number"),
        ("/steer 1 much", "needs a number"),
        ("/steer 3 1", "expected 0 to 2"),
        ("/steer 0 nan", "number"),
        ("/features all", "needs a number"),
        ("/save", "/save needs a file"),
        ("/help", "/feature N"),
        ("/", "no command /:"),
        ("//", "no command //:"),
        ("/OFF", "no command /OFF:"),
        ("/nonsense 3", "no command /nonsense:"),
    ],
)
def test_bad_commands_change_nothing_and_say_why(lm, line, says):
    chat = a_chat(lm, 1, 2.0)
    chat.reply("yes")
    before = chat.exchanges[:]
    assert says in chat.command(line)
    assert (chat.feature, chat.strength, chat.exchanges) == (1, 2.0, before)


def test_the_loop_prints_replies_and_takes_commands(lm, monkeypatch, capsys):
    chat = a_chat(lm)
    lines = "red or blue\n\n   \n/feature 1\n  yes  \n/feature 7\n/quit\nnot read\n"
    monkeypatch.setattr(sys, "stdin", io.StringIO(lines))
    chat.loop()
    out, err = capsys.readouterr()
    first = by_hand(lm, [user("red or blue")])
    turns = [user("red or blue"), assistant(first), user("yes")]
    second = by_hand(lm, turns, steering=steer(lm, chat.features[1]))
    assert chat.turns == [*turns, assistant(second)]
    assert out.startswith(f"[unsteered] you: {first}\n")
    assert f"[feature 1 × 1] you: {second}\n" in out
    said = err.splitlines()
    assert "/help" in said[0]
    assert said[1] == "feature 1 × 1"
    assert "expected 0 to 2" in said[2]
    assert len(said) == 3


def test_the_loop_ends_with_the_input(lm, monkeypatch, capsys):
    monkeypatch.setattr(sys, "stdin", io.StringIO("red or blue"))
    chat = a_chat(lm, 1)
    chat.loop()
    assert len(chat.turns) == 2
    assert capsys.readouterr().out.endswith("[feature 1 × 1] you: \n")


def test_the_model_is_left_as_it_was(lm):
    ids = torch.tensor([[1, 20, 30, 40]])
    before = lm.model(ids).logits
    a_chat(lm, 1).reply("red or blue")
    assert torch.equal(lm.model(ids).logits, before)
    assert not any(block._forward_pre_hooks or block._forward_hooks for block in lm.blocks)


def test_without_a_chat_template_there_is_no_conversation():
    lm = tiny_model("llama")
    lm.tokenizer.chat_template = None
    says = "the tokenizer of llama has no chat template: use melbo sample"
    with pytest.raises(MelboError, match=says):
        a_chat(lm)


def test_features_of_another_model_are_refused(lm):
    meta = {"model": {"name": "the-other", "sha256": "0" * 64}}
    chat = a_chat(lm, 1, **meta)
    with pytest.raises(MelboError, match="fitted on the-other"):
        chat.reply("yes")


def test_a_conversation_longer_than_the_model_reads_says_so():
    chat = a_chat(tiny_model("gpt2"))  # absolute position embeddings end at 64
    with pytest.raises(MelboError, match="64"):
        chat.reply("dog " * 80)
