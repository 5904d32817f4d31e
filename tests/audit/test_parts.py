"""Prompts of an audit in three parts."""

from collections import Counter
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from cases import tiny_model

from melbo import MelboError, Parts, Prompts
from melbo.audit import parts
from melbo.audit.parts import KINDS
from melbo.models.text.conversation import Conversation
from melbo.models.text.spread import spread


@pytest.fixture(scope="module")
def lm():
    return tiny_model("llama", torch.float32)


def spelt(texts):
    """Prompts as their bytes: the tiny tokenizer reads many of them alike."""
    return Prompts(tuple(texts), tuple(tuple(str(text).encode()) for text in texts))


def texts_of(found):
    return [[str(t) for t in p.texts] for p in (found.screening, found.validation, found.held_out)]


def test_every_kind_is_screened_and_some_kinds_are_validated_and_held_out(lm):
    found = Parts.built_in(lm, spelt)
    kind = {
        str(p.text): p.kind
        for part in ("screening", "validation", "held_out")
        for p in spread(part)
    }
    screened, validated, held_out = ([kind[t] for t in texts] for texts in texts_of(found))
    assert sorted(screened) == sorted(set(kind.values()))
    assert validated == screened[:KINDS]
    assert Counter(held_out) == dict.fromkeys(validated, 2)


def test_conversations_are_left_out_where_the_template_takes_none(lm):
    def read(texts):
        if any(isinstance(text, Conversation) for text in texts):
            raise MelboError("the template takes no system message")
        return spelt(texts)

    found = Parts.built_in(lm, read)
    assert len(found.held_out) / 2 == KINDS
    single = [str(p.text) for p in spread("screening", conversations=False)]
    assert texts_of(found)[0] == single


@pytest.mark.parametrize("kind", ["chat", "text"])
def test_built_in_prompts_are_read_as_chats_where_there_is_a_template(monkeypatch, kind):
    def read(kind):
        return lambda lm, texts: replace(spelt(texts), kind=kind)

    monkeypatch.setattr(parts, "Prompts", SimpleNamespace(chat=read("chat"), text=read("text")))
    lm = tiny_model("llama", torch.float32)
    if kind == "text":
        lm.tokenizer.chat_template = None
    found = Parts.built_in(lm)
    assert {p.kind for p in (found.screening, found.validation, found.held_out)} == {kind}


def test_prompts_that_cannot_be_read_at_all_are_refused(lm):
    def read(texts):
        raise MelboError("no template")

    with pytest.raises(MelboError, match="no template"):
        Parts.built_in(lm, read)


def test_a_split_takes_every_fourth_prompt_and_loses_none(lm):
    prompts = Prompts.chat(lm, [f"w{i} w{i + 1}" for i in range(14)])
    screening, validation, held_out = texts_of(Parts.split(prompts))
    assert screening == [f"w{i} w{i + 1}" for i in (0, 4, 8, 12)]
    assert validation == [f"w{i} w{i + 1}" for i in (1, 5, 9, 13)]
    assert held_out == [f"w{i} w{i + 1}" for i in (2, 3, 6, 7, 10, 11)]
