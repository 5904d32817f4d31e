"""A model inside peft's wrapper is known again once its adapter is merged, and the other way."""

import copy
import warnings

import peft
import pytest
import torch
from cases import TINY, checkpoint, prompts, tiny_tokenizer

from melbo import CausalMap, FeatureSet, LanguageModel, MelboError, Random, fit, load, steer
from melbo.models.weights.fingerprint import fingerprint
from research.tiny.adapted import ADAPTED, adapted

IDS = torch.tensor([[5, 9, 17, 23, 31, 40]])
PARTS = {"r": 2, "task_type": "CAUSAL_LM", "init_lora_weights": False}
#: Adapters with parts that are no low-rank product beside a single matrix.
OTHERS = {
    "a whole head": ("llama", {"target_modules": ["q_proj"], "modules_to_save": ["lm_head"]}),
    "single tokens": ("llama", {"target_modules": ["q_proj"], "trainable_token_indices": [50, 70]}),
    "an embedding": ("llama", {"target_modules": ["embed_tokens", "q_proj"]}),
    "biases": ("opt", {"target_modules": ["q_proj"], "bias": "lora_only"}),
    "experts": (
        "mixtral",
        {"target_parameters": ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"]},
    ),
}


def wrapped(kind, dtype=torch.float32):
    if kind in ADAPTED:
        return adapted(kind).to(dtype)
    name, parts = OTHERS[kind]
    base = TINY[name]().to(dtype)
    torch.manual_seed(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = peft.get_peft_model(base, peft.LoraConfig(**PARTS, **parts))
    with torch.no_grad():
        for key, p in model.named_parameters():
            if "lora_" in key or "tokens_delta" in key or "modules_to_save" in key:
                p.add_(torch.randn_like(p), alpha=0.3)
    return model


def merged(model):
    return copy.deepcopy(model).merge_and_unload()


def spoil(model):
    """Change one number of the adapter by a lot."""
    with torch.no_grad():
        p = next(p for n, p in model.named_parameters() if p.requires_grad and p.numel() > 1)
        p.view(-1)[0] += 3.0


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("kind", [*ADAPTED, *OTHERS])
def test_the_digest_of_a_wrapped_model_is_that_of_the_merged_one(kind, dtype):
    model = wrapped(kind, dtype)
    before = {k: t.clone() for k, t in model.state_dict().items()}
    found = fingerprint(model)
    assert found == fingerprint(merged(model))
    assert all(torch.equal(before[k], t) for k, t in model.state_dict().items())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that biases stay
        with model.disable_adapter():
            assert fingerprint(model) != found
    spoil(model)
    assert fingerprint(model) != found
    assert fingerprint(model) == fingerprint(merged(model))


@pytest.mark.parametrize("kind", ["lora", "lora on all"])
def test_an_adapter_that_is_switched_off_leaves_the_base(kind):
    model, base = wrapped(kind), TINY[ADAPTED[kind][0]]()
    with model.disable_adapter():
        assert fingerprint(model) == fingerprint(base)
    model.merge_adapter()
    assert fingerprint(model) == fingerprint(merged(wrapped(kind)))


def fitted(lm):
    cmap = CausalMap(lm, prompts([6, 4]), 1, lm.depth)
    return fit(cmap, Random(2, 4.0), progress=False).features


@torch.no_grad()
def logits(lm, features):
    with steer(lm, features[0]):
        return lm.model(input_ids=IDS).logits


@pytest.mark.parametrize("kind", ["lora", "dora", "ia3"])
def test_features_go_from_the_wrapped_model_to_the_merged_one_and_back(kind, tmp_path):
    base = checkpoint(TINY[ADAPTED[kind][0]](), tmp_path / "base")
    model = wrapped(kind)
    model.peft_config["default"].base_model_name_or_path = base
    model.save_pretrained(tmp_path / "adapter")
    beside = LanguageModel(model, tiny_tokenizer(), name="beside")
    together = load(str(tmp_path / "adapter"))
    for one, other, run in ((beside, together, "one"), (together, beside, "two")):
        features = fitted(one)
        features.save(tmp_path / run)
        again = FeatureSet.load(tmp_path / run, other)
        torch.testing.assert_close(
            logits(other, again), logits(one, features), rtol=1e-4, atol=1e-4
        )
    changed = wrapped(kind)
    spoil(changed)
    for lm in (LanguageModel(changed, tiny_tokenizer()), load(base)):
        with pytest.raises(MelboError, match="these features were fitted on"):
            FeatureSet.load(tmp_path / "one", lm)
