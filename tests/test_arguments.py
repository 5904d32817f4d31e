"""Texts, lists and indices where prompts or features belong: one line that says what to do."""

import pytest
import torch
from cases import tiny_model
from toys import directions

import melbo
from melbo import CausalMap, FeatureSet, MelboError, Prompts

TEXTS = ["dog and sun"]
READ = r"is of the type (list|str), expected Prompts: read texts by melbo\.Prompts\.chat"
SET = r"^features is of the type (int|list|Tensor), expected Steerable: .*fit\.features\[3\]"


@pytest.fixture(scope="module")
def lm():
    return tiny_model("llama")


@pytest.fixture(scope="module")
def prompts(lm):
    return Prompts.chat(lm, TEXTS)


@pytest.fixture(scope="module")
def features(lm, prompts):
    V, U = (directions(3, lm.width, seed, torch.float32) for seed in (0, 1))
    meta = {"map": CausalMap(lm, prompts).describe()}
    return FeatureSet(V, U, torch.ones(3), 2.0, 1, 3, meta)


@pytest.mark.parametrize("texts", [TEXTS, TEXTS[0]], ids=["list", "text"])
@pytest.mark.parametrize(
    "call",
    [
        lambda lm, good, features, texts: CausalMap(lm, texts),
        lambda lm, good, features, texts: melbo.AdapterMap(lm, texts),
        lambda lm, good, features, texts: melbo.generate(lm, texts, features),
        lambda lm, good, features, texts: melbo.rank(lm, features, texts, good),
        lambda lm, good, features, texts: melbo.rank(lm, features, good, texts),
        lambda lm, good, features, texts: melbo.watch(lm, features, texts, good),
        lambda lm, good, features, texts: melbo.watch(lm, features, good, texts),
        lambda lm, good, features, texts: melbo.compare(CausalMap(lm, good), texts),
        lambda lm, good, features, texts: melbo.caa(CausalMap(lm, good), texts, texts),
        lambda lm, good, features, texts: melbo.Parts(texts, good, good),
    ],
)
def test_texts_are_not_prompts(lm, prompts, features, call, texts):
    with pytest.raises(MelboError, match=READ):
        call(lm, prompts, features, texts)


@pytest.mark.parametrize("wrong", [lambda f: 3, lambda f: [f[0], f[1]], lambda f: f.V[0]])
@pytest.mark.parametrize(
    "call",
    [
        lambda lm, prompts, wrong: melbo.steer(lm, wrong),
        lambda lm, prompts, wrong: melbo.generate(lm, prompts, wrong),
        lambda lm, prompts, wrong: melbo.rank(lm, wrong, prompts, prompts),
        lambda lm, prompts, wrong: melbo.watch(lm, wrong, prompts, prompts),
    ],
)
def test_an_index_a_list_or_a_row_is_no_set_of_features(lm, prompts, features, call, wrong):
    with pytest.raises(MelboError, match=SET):
        call(lm, prompts, wrong(features))


def test_directions_to_ablate_are_rows(lm, features):
    with (
        pytest.raises(MelboError, match=r"^directions is of the type FeatureSet.*features\.V"),
        melbo.ablate(lm, features[0]),
    ):
        pass


@pytest.mark.parametrize("call", [melbo.calibrate, lambda m: melbo.fit(m, melbo.Random(2))])
def test_a_model_is_no_map(lm, call):
    with pytest.raises(MelboError, match=r"^map is of the type LanguageModel.*melbo\.CausalMap"):
        call(lm)


def test_an_audit_takes_parts(lm, prompts):
    with pytest.raises(MelboError, match=r"^parts is of the type Prompts.*Parts\.built_in\(lm\)"):
        melbo.Audit(lm, prompts)
