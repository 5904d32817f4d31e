"""Latents of a dictionary as candidates, beside what the model and the dictionary say by hand."""

import pytest
import torch
from cases import tiny_model

from melbo import MelboError
from melbo.dictionary import ReLU, TopK, save
from melbo.dictionary.origin import Origin
from melbo.discovery.latents import Latents
from melbo.maths.linalg import unit

LAYER, LATENTS = 2, 64


@pytest.fixture
def dictionary(lm):
    """Random directions of unequal norms, few of them active at once."""
    made = TopK(lm.width, LATENTS, 2, seed=3)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        made.W_dec *= 0.2 + torch.rand(LATENTS, 1, generator=generator)
    return made


@torch.no_grad()
def written_by_hand(lm, asked, dictionary):
    """Amounts that every latent writes on the prompts, token by token."""
    total, count = torch.zeros(LATENTS), 0
    for tokens in asked.tokens:
        hidden = lm.model(torch.tensor([tokens]), output_hidden_states=True).hidden_states[LAYER]
        for x in hidden[0, 1:]:
            f = dictionary.encode(x)
            total += torch.stack([(f[i] * dictionary.W_dec[i]).norm() for i in range(LATENTS)])
            count += 1
    return total / count


def added(found, i):
    return sum(e.vectors for e in found.features.edit(torch.tensor([i])).edits)[0]


def test_active_latents_come_first_by_what_they_write_then_silent_ones(lm, asked, dictionary):
    found, tokens = Latents(dictionary, LAYER).candidates(lm, asked, LATENTS, 0, False)
    accounts = [found.describe(i) for i in range(len(found))]
    numbers = [about["index"] for about in accounts]
    written = written_by_hand(lm, asked, dictionary)
    fired = int((written > 0).sum())
    assert 3 < fired < LATENTS - 3
    assert sorted(numbers) == list(range(LATENTS))
    assert numbers[:fired] == written.argsort(descending=True)[:fired].tolist()
    expected = pytest.approx(written[numbers].tolist(), rel=1e-4)
    assert [about["written"] for about in accounts] == expected
    assert {about["kind"] for about in accounts} == {"latent"}
    assert tokens > sum(map(len, asked.tokens))


def test_a_candidate_adds_the_decoders_direction_at_its_layer_and_norm(lm, asked, dictionary):
    found, _ = Latents(dictionary, LAYER, (1.0, 0.25)).candidates(lm, asked, 7, 0, False)
    assert len(found) == 7
    assert found.strengths == (1.0, 0.25, 1.0, 0.25, 1.0, 0.25, 1.0)
    for i in range(7):
        about = found.describe(i)
        assert (about["layer"], about["sign"]) == (LAYER, 1)
        direction = unit(dictionary.W_dec.detach())[about["index"]]
        torch.testing.assert_close(added(found, i), about["scale"] * direction)


def test_the_seed_draws_silent_latents_only(lm, asked, dictionary):
    fired = int((written_by_hand(lm, asked, dictionary) > 0).sum())
    one, same, other = (
        [
            about["index"]
            for found in [Latents(dictionary, LAYER).candidates(lm, asked, LATENTS, seed, False)[0]]
            for about in map(found.describe, range(LATENTS))
        ]
        for seed in (0, 0, 1)
    )
    assert one == same
    assert one[:fired] == other[:fired]
    assert one[fired:] != other[fired:]


def test_a_latent_without_a_direction_is_left_out(lm, asked):
    dictionary = ReLU(lm.width, 6)
    with torch.no_grad():
        dictionary.W_dec[4] = 0
    found, _ = Latents(dictionary, -3).candidates(lm, asked, 6, 0, False)
    assert sorted(found.describe(i)["index"] for i in range(len(found))) == [0, 1, 2, 3, 5]
    assert found.describe(0)["layer"] == lm.depth - 2


@pytest.mark.parametrize(
    ("width", "layer", "said"),
    [
        (0, 99, "layer is 99, but llama has"),
        (0, -1, "where no block reads"),
        (8, 1, "the dictionary is of width"),
    ],
)
def test_what_does_not_fit_the_model_is_refused_in_one_line(lm, asked, width, layer, said):
    elicitor = Latents(ReLU(lm.width + width, 6), layer)
    with pytest.raises(MelboError, match=said) as refused:
        elicitor.candidates(lm, asked, 2, 0, False)
    assert "\n" not in str(refused.value)


def test_a_folder_is_of_the_model_or_of_its_base(lm, dictionary, tmp_path):
    tuned = tiny_model("llama", torch.float32)
    with torch.no_grad():
        tuned.model.lm_head.weight += 1
    save(dictionary, tmp_path / "d", Origin.of(lm, LAYER).metadata(16, lm.depth))
    own = Latents.read(tmp_path / "d", lm)
    assert own.layer == LAYER
    assert Latents.read(tmp_path / "d", tuned, base=lm).name == own.name
    for base in (None, tuned):
        with pytest.raises(MelboError, match="load the model it was trained on"):
            Latents.read(tmp_path / "d", tuned, base=base)
    with pytest.raises(MelboError, match="no dictionary in"):
        Latents.read(tmp_path / "e", lm)


def test_another_dictionary_has_another_name(lm, dictionary):
    name = Latents(dictionary, LAYER).name
    assert name.startswith("latents-")
    assert name != Latents(TopK(lm.width, LATENTS, 2, seed=4), LAYER).name
