"""Differences from a base model, planted and found again."""

import pytest
import torch
from cases import TINY, tiny_model, tiny_tokenizer

from melbo import LanguageModel, MelboError
from melbo.discovery.differences import ActivationDifference, WeightDifference, streams
from melbo.maths.linalg import unit


@pytest.fixture(scope="module")
def base():
    return tiny_model("llama", torch.float32)


@pytest.fixture
def tuned():
    return tiny_model("llama", torch.float32)


def plant(lm, block, sizes, seed=0):
    """Edits of a block's MLP output matrix of these sizes; their directions, orthonormal rows."""
    generator = torch.Generator().manual_seed(seed)
    weight = lm.model.model.layers[block].mlp.down_proj.weight
    left, right = (
        torch.linalg.qr(torch.randn(n, len(sizes), generator=generator)).Q for n in weight.shape
    )
    with torch.no_grad():
        weight += left @ torch.diag(torch.tensor(sizes)) @ right.T
    return left.T


def test_planted_directions_come_first_by_size_with_their_negatives(base, tuned, asked):
    one, two = plant(tuned, 0, [3.0, 1.0]), plant(tuned, 1, [2.0], seed=1)
    plant(tuned, tuned.depth - 1, [9.0], seed=2)  # nobody reads what the last block writes
    found, cost = WeightDifference(base).candidates(tuned, asked, 20, 0, False)
    assert len(found) == 6
    assert cost > 0
    accounts = [found.describe(i) for i in range(6)]
    sizes = [3.0, 3.0, 2.0, 2.0, 1.0, 1.0]
    assert [a["singular_value"] for a in accounts] == pytest.approx(sizes, rel=1e-3)
    assert [a["layer"] for a in accounts] == [1, 1, 2, 2, 1, 1]
    assert [a["sign"] for a in accounts] == [1, -1] * 3
    assert [a["strength"] for a in accounts] == [0.75, 0.75, 0.5, 0.5, 0.75, 0.75]
    for pair, direction in enumerate((one[0], two[0], one[1])):
        plus, minus = (found.features.edit(torch.tensor([2 * pair + s])) for s in (0, 1))
        added = [sum(e.vectors for e in edit.edits)[0] for edit in (plus, minus)]
        assert torch.allclose(added[0], -added[1])
        assert abs(unit(added[0][None])[0] @ direction) == pytest.approx(1, abs=1e-4)
        assert added[0].norm().item() == pytest.approx(accounts[2 * pair]["scale"], rel=1e-4)


def test_scales_are_the_same_share_of_the_stream_at_every_layer(base, tuned, asked):
    plant(tuned, 0, [3.0])
    plant(tuned, 2, [3.0], seed=1)
    found, _ = WeightDifference(base).candidates(tuned, asked, 4, 0, False)
    scale = {found.describe(i)["layer"]: found.describe(i)["scale"] for i in range(4)}
    norms = torch.cat([streams(tuned, t)[:, 1:].norm(dim=-1) for t in asked.tokens], 1)
    typical = norms.median(1).values
    assert set(scale) == {1, 3}
    assert scale[1] / scale[3] == pytest.approx((typical[1] / typical[3]).item())


def test_streams_are_the_models_hidden_states(base, asked):
    with torch.no_grad():
        ids = torch.tensor([asked.tokens[1]])
        hidden = base.model(ids, output_hidden_states=True).hidden_states
    assert torch.allclose(streams(base, asked.tokens[1]), torch.cat(hidden[:-1]), atol=1e-5)


def test_mean_differences_of_activations(base, tuned, asked):
    plant(tuned, 0, [3.0])
    found, _ = ActivationDifference(base).candidates(tuned, asked, 200, 0, False)
    accounts = [found.describe(i) for i in range(len(found))]
    # three strengths, every layer after the change, two readings, two signs
    assert len(found) == 3 * (tuned.depth - 1) * 2 * 2
    with torch.no_grad():
        hidden = [
            [
                torch.cat(lm.model(torch.tensor([t]), output_hidden_states=True).hidden_states[:-1])
                for t in asked.tokens
            ]
            for lm in (tuned, base)
        ]
    pairs = [a - b for a, b in zip(*hidden, strict=True)]
    for i in range(8):
        layer, at = accounts[i]["layer"], accounts[i]["at"]
        if at == "last token":
            expected = sum(p[layer, -1] for p in pairs)
        else:
            expected = sum(p[layer, 1:].sum(0) for p in pairs)
        added = sum(e.vectors for e in found.features.edit(torch.tensor([i])).edits)[0]
        cosine = torch.cosine_similarity(added, expected, dim=0)
        assert cosine * accounts[i]["sign"] == pytest.approx(1, abs=1e-4)


@pytest.mark.parametrize("elicitor", [WeightDifference, ActivationDifference])
def test_equal_models_are_refused(base, asked, elicitor):
    with pytest.raises(MelboError, match="have the same .*: nothing in them tells"):
        elicitor(tiny_model("llama", torch.float32)).candidates(base, asked, 4, 0, False)


def smaller(**changes):
    config = TINY["llama"]().config
    for name, value in changes.items():
        setattr(config, name, value)
    model = type(TINY["llama"]())(config)
    return LanguageModel(model.float(), tiny_tokenizer(), name="smaller")


def other_words():
    tokenizer = tiny_tokenizer()
    tokenizer.add_tokens(["novel"])
    return LanguageModel(TINY["llama"]().float(), tokenizer, name="wordy")


@pytest.mark.parametrize("elicitor", [WeightDifference, ActivationDifference])
@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: smaller(num_hidden_layers=2), r"\(blocks 4 and 2\)"),
        (lambda: smaller(hidden_size=16, head_dim=8), r"\(width 32 and 16\)"),
        (lambda: tiny_model("qwen2", torch.float32), "architecture LlamaForCausalLM and Qwen2"),
        (other_words, r"\(tokenizer \(96 and 97 tokens\)\)"),
    ],
)
def test_another_kind_of_base_is_refused(base, asked, elicitor, make, said):
    with pytest.raises(MelboError, match=said) as err:
        elicitor(make()).candidates(base, asked, 4, 0, False)
    assert "give the model that it was tuned from" in str(err.value)
    assert "\n" not in str(err.value)
