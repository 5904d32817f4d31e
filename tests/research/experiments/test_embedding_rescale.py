"""The experiment that rescales embeddings, on a tiny model."""

from dataclasses import replace

import pytest
import torch
from cases import tiny_model

from melbo import MelboError
from melbo.maths.statistics import kl
from melbo.models.edits import edit
from research.experiments import EmbeddingRescale, run
from research.experiments.held import Patterns, ScaleToken

FACTORS = (0.0, 0.5, 1.0, 3.0)


@pytest.fixture
def chosen(tiny):
    return EmbeddingRescale(
        model=tiny,
        template="how do you Describe {} ? he was",
        control="how",
        mentions=("we is {}", "she was not {}"),
        words=("dog", "cat", "sun"),
        factors=FACTORS,
        layer=2,
        max_new_tokens=3,
    )


def scaled_by_hand(lm, tokens, place, factor, **more):
    ids = torch.tensor([tokens])
    embedded = lm.model.get_input_embeddings()(ids).clone()
    embedded[0, place] *= factor
    return lm.model(inputs_embeds=embedded, **more)


def test_a_token_is_scaled_row_by_row():
    lm, tokens = tiny_model("llama"), [1, 20, 21, 22, 23]
    ids = torch.tensor([tokens] * 3)
    scaled = ScaleToken(0, 2, torch.tensor([0.0, 1.0, 5.0]))
    with edit(lm, scaled):
        found = lm.model(ids).logits
    for row, factor in enumerate((0.0, 1.0, 5.0)):
        expected = scaled_by_hand(lm, tokens, 2, factor).logits[0]
        assert torch.allclose(found[row], expected)
    assert scaled.rows(torch.tensor([2])).factors.tolist() == [5.0]


def test_rows_are_those_of_embeddings_scaled_by_hand(chosen):
    ready = chosen.prepare()
    lm, asked = ready.lm, ready.asked["cat"]
    row = chosen.measure(ready, chosen.cases[1])
    whole = [
        scaled_by_hand(lm, asked.tokens, asked.place, c, output_attentions=True) for c in FACTORS
    ]
    states = [
        scaled_by_hand(lm, asked.tokens, asked.place, c, output_hidden_states=True).hidden_states
        for c in FACTORS
    ]
    one = FACTORS.index(1)
    assert row["kl"][one] == row["kl stream"][one] == row["kl attention"][one] == 0
    for k, factor in enumerate(FACTORS):
        expected = kl(whole[one].logits[0, -1], whole[k].logits[0, -1])
        assert row["kl"][k] == pytest.approx(expected, rel=1e-2, abs=1e-6)
        later = torch.stack(
            [a[0, :, asked.place + 1 :, asked.place] for a in whole[k].attentions]
        ).mean()
        assert row["attention"][k] == pytest.approx(later.item(), rel=1e-3)
        h = states[k][2][0, asked.place]
        write = h - factor * states[one][0][0, asked.place]
        assert row["writes"][k] == pytest.approx((write.norm() / h.norm()).item(), rel=1e-3)
    assert len({asked.place, asked.control}) == 2
    assert all(value != 0 for value in row["kl control"][:one])
    # the embedding alone acts where attention stays, and attention where the embedding does
    assert row["kl stream"][0] > 1e-5
    assert row["kl attention"][0] > 1e-5
    # with what the first MLP writes put back by hand
    mlp, kept = lm.blocks[0].mlp, []
    handle = mlp.register_forward_hook(lambda module, args, out: kept.append(out[0, asked.place]))
    scaled_by_hand(lm, asked.tokens, asked.place, 1.0)
    handle.remove()

    def put_back(module, args, out):
        out = out.clone()
        out[0, asked.place] = kept[0]
        return out

    handle = mlp.register_forward_hook(put_back)
    rest = scaled_by_hand(lm, asked.tokens, asked.place, FACTORS[-1])
    handle.remove()
    expected = kl(whole[one].logits[0, -1], rest.logits[0, -1])
    assert row["kl first"][-1] == pytest.approx(expected, rel=1e-2, abs=1e-6)
    # without ε, the first norm does not see the factor, but what follows does
    assert row["kl epsilon"][one] == 0


def test_patterns_are_replaced_block_by_block(chosen):
    lm = chosen.prepare().lm
    ids = torch.tensor([[1, 20, 21, 22]])
    with Patterns() as seen:
        plain = lm.model(ids).logits
    assert len(seen.kept) == lm.depth
    with Patterns(seen.kept):
        assert torch.equal(lm.model(ids).logits, plain)
    uniform = [torch.full_like(pattern, 0.25) for pattern in seen.kept]
    with Patterns(uniform) as again:
        other = lm.model(ids).logits
    assert not torch.allclose(other, plain)
    assert torch.equal(again.kept[0], seen.kept[0])


def test_definitions_agree_where_nothing_is_left_of_the_word(chosen, tmp_path):
    rows = list(run(chosen, tmp_path, progress=False))
    assert [row["word"] for row in rows] == ["dog", "cat", "sun"]
    assert len({row["definitions"][0] for row in rows}) == 1
    table = (tmp_path / "table.md").read_text()
    assert table.splitlines()[2].endswith(
        f"| 1.00 | {table.splitlines()[2].split('|')[-2].strip()} |"
    )
    assert (tmp_path / "picture.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"template": "Describe it"}, "expected one {} for the word"),
        ({"factors": (0.5, 2.0)}, "factors lacks 1"),
        ({"words": ("dog",)}, "got 1 word: expected two or more"),
    ],
)
def test_settings_that_make_no_sense_are_refused(chosen, change, says):
    with pytest.raises(MelboError, match=says):
        replace(chosen, **change).check()


def test_words_of_several_tokens_are_refused(chosen):
    with pytest.raises(MelboError, match="'red dog' is not one token"):
        replace(chosen, words=("cat", "red dog")).prepare()
