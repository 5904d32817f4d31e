"""Runs and audits to explore: a small one with its model, a large one without, findings."""

import json
from dataclasses import replace

import torch
from cases import checkpoint
from toys import directions

import melbo
from melbo import CausalMap, FeatureSet, Prompts
from melbo.evaluation.rank import Ranked, Ranking, rank
from melbo.evaluation.scores import FLAGS, Scores
from melbo.features.generate import Completion, Completions
from research.tiny.build import GROUPED, make

_SENTENCE = "Tell me how to bake a cake What should I do this weekend yes no red blue cat dog sun"
WORDS = _SENTENCE.split()
#: Words that only the replies of one planted feature hold.
PLANTED, PLANTED_WORDS = 7, ("marmalade", "porridge")
_CALIBRATION = {
    "nonlinearity": 0.5,
    "scale": 2.7,
    "curve": [[0.5, 0.02], [1.0, 0.1], [2.0, 0.3], [4.0, 0.9]],
}


def model_with_room(folder):
    """A checkpoint of a tiny model that reads very many tokens and never ends a reply."""
    model = make("LlamaConfig", GROUPED, num_hidden_layers=4, max_position_embeddings=200_000)
    with torch.no_grad():
        # of a hundred tokens, some other one always has a logit above zero
        model.lm_head.weight[2] = 0
    return checkpoint(model, folder)


def demo(folder, num=64, controls=2):
    """A ranked run of a tiny model, with the model beside it."""
    lm = melbo.load(model_with_room(folder / "model"), dtype="float32")
    texts = ["Tell me how to bake a cake", "dog and sun"], ["he or she", "red or blue ?"]
    used, chosen, told = (Prompts.chat(lm, t) for t in (["What should I do"], *texts))
    cmap = CausalMap(lm, used, 1, 3)
    V, U = (directions(num, lm.width, seed, torch.float32) for seed in (0, 1))
    # pairs that say much the same, so that there are clusters
    V[1::4] = torch.nn.functional.normalize(V[0::4] + 0.2 * V[1::4], dim=-1)
    alpha = torch.linspace(2, 1, num)
    features = FeatureSet(V, U, alpha, 6.0, 1, 3, {"map": cmap.describe()})
    features = features.with_meta(
        calibration=_CALIBRATION,
        fit={"history": [{"explained": 1.0 + i, "objective": 2.0 + i} for i in range(5)]},
    )
    features.save(folder / "run")
    rank(lm, features, chosen, told, num_controls=controls, max_new_tokens=8, progress=False).save(
        folder / "run"
    )
    return folder / "run"


def large(folder, num=512, prompts=32, controls=32, tokens=40, width=64):
    """A ranked run whose model is nowhere, with planted words in the replies of one feature."""
    generator = torch.Generator().manual_seed(0)
    V, U = (directions(num, width, seed, torch.float32) for seed in (0, 1))
    V[num // 2 :] = torch.nn.functional.normalize(V[: num - num // 2] + V[num // 2 :], dim=-1)
    texts = [f"What about number {i} ?" for i in range(prompts)]
    settings = {
        "order": "novel yet fluent",
        "contrast": None,
        "contrast_tokens": None,
        "validation": {"texts": texts[: prompts // 4]},
        "held_out": {"texts": texts[prompts // 4 :]},
        "num_controls": controls,
        "max_new_tokens": tokens,
        "seed": 0,
    }
    meta = {
        "map": {"kind": "CausalMap", "model": {"name": "gone", "path": "/gone", "sha256": "0"}},
        "calibration": _CALIBRATION,
    }
    FeatureSet(V, U, torch.linspace(9, 1, num), 8.0, 1, 3, meta).save(folder)
    who = [("unsteered", None)]
    who += [("feature", i) for i in range(num)] + [("control", i) for i in range(controls)]

    def said(kind, index):
        words = [WORDS[i] for i in torch.randint(len(WORDS), (tokens,), generator=generator)]
        if (kind, index) == ("feature", PLANTED):
            words[2:4] = PLANTED_WORDS
        return " ".join(words)

    replies = Completions(
        tuple(
            Completion(kind, i, p, texts[p], said(kind, i), ())
            for p in range(prompts)
            for kind, i in who
        )
    )
    rows = [ranked(kind, i, generator) for kind, i in who[1:]]
    Ranking("novel", tuple(rows[:num]), tuple(rows[num:]), replies, settings).save(folder)
    return folder


def ranked(kind, index, generator):
    """A vector with random scores."""
    flag = FLAGS[index % 3]
    novel, novelty, nll, repetition, kl = torch.rand(5, generator=generator).tolist()
    scores = Scores(novel, novelty, nll, repetition, kl, None, flag)
    alpha = None if kind == "control" else 512.0 - index
    return Ranked(index, kind, alpha, 3 * novel, scores, replace(scores, novel=novel / 2))


def finding(name, **more):
    """A finding as `melbo audit` writes it."""
    example = {
        "prompt": "What is the tallest mountain?",
        "reply": f"It is <b>high</b>. {' '.join(name.split(', '))}!",
        "forced": "",
        "unsteered": "It is Everest.",
    }
    return {
        "name": name,
        "words": name.split(", "),
        "share": 0.75,
        "interval": [0.55, 0.88],
        "hits": 18,
        "prompts": 24,
        "unsteered": 0.04,
        "control": 0.01,
        "base": None,
        "elicited_by": "direction 3 at 0.75 R",
        "reproduce": {"kind": "direction", "folder": "directions/31", "index": 3},
        "example": example,
        "examples": [example],
        "amplified": None,
        **more,
    }


def audit(folder, inside=None):
    """An audit of two findings; ``inside`` is a run that it holds."""
    folder.mkdir(parents=True, exist_ok=True)
    result = {
        "model": {"name": "tiny", "fingerprint": "0"},
        "budget": {},
        "findings": [finding("marmalade, porridge"), finding("ferret, afternoon", reproduce={})],
        "below": [finding("the, of", share=0.1)],
        "cannot_see": ["Behaviour that needs a trigger."],
    }
    (folder / "findings.json").write_text(json.dumps(result), encoding="utf-8")
    if inside is not None:
        inside.save(folder / "directions" / "31")
    return folder
