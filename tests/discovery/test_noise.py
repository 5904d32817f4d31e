"""Noise in activations and weights, beside plain twins."""

import contextlib

import pytest
import torch
from cases import TINY, tiny_model, tiny_tokenizer
from offloaded import offloaded
from quantised import quantised

from melbo import LanguageModel, MelboError, Prompts, edit
from melbo.discovery.noise import SHARES, ActivationNoise, AddNoise, Noisy, stream_norm
from melbo.discovery.weight_noise import SIZES, Perturbed, WeightNoise, perturbed
from melbo.maths.keyed_random import gaussian, key_of
from melbo.models.decoding.decode import Batching, decode
from melbo.models.weights.output_matrices import output_matrices

NORMS, SEEDS = (2.0, 0.0, 5.0, 3.0), tuple(key_of(i) for i in range(4))
TEXTS = ["red dog", "How do I learn to play the guitar ?", "yes", "red dog"]


@torch.no_grad()
def plain(lm, prompt, row, length, layer):
    """A reply of one row, read whole for every token, with noise put on the stream by hand."""

    def hook(block, args, kwargs):
        hidden = args[0] if args else kwargs["hidden_states"]
        noise = torch.stack([gaussian(SEEDS[row], i, lm.width) for i in range(hidden.shape[1])])
        new = hidden + noise * NORMS[row] / lm.width**0.5
        return ((new, *args[1:]), kwargs) if args else (args, {**kwargs, "hidden_states": new})

    ids = list(prompt)
    with lm.blocks[layer].register_forward_pre_hook(hook, with_kwargs=True):
        while len(ids) - len(prompt) < length:
            ids.append(int(lm.model(torch.tensor([ids]), use_cache=False).logits[0, -1].argmax()))
            if ids[-1] in lm.eos:
                break
    return ids[len(prompt) :]


@pytest.mark.parametrize("size", [1, 3, 8])
@pytest.mark.parametrize("name", [*TINY])
def test_noisy_rows_are_those_of_a_plain_twin(name, size):
    lm = tiny_model(name, torch.float32)
    tokens = Prompts.chat(lm, TEXTS).tokens
    noise = AddNoise(1, NORMS, SEEDS)
    batching = Batching(size=size, leg=3, least_prefix=2)
    for alike in (None, [0, 1, 2, 3]):
        found = decode(lm, tokens, noise, 6, batching, progress=False, alike=alike)
        assert found == [plain(lm, tokens[row], row, 6, 1) for row in range(4)]


def test_a_shared_prefix_has_the_noise_of_each_candidate(lm):
    prompts = Prompts.chat(lm, ["red dog", "red cat", "red sun", "red blue ?"], system="you and me")
    tried = Noisy(1, NORMS, SEEDS)
    table = tried.replies(lm, prompts, 5, unsteered=False, progress=False)
    for c in table:
        assert list(c.tokens) == plain(lm, prompts.tokens[c.prompt], c.feature, 5, 1)


def test_noise_has_its_norm_and_is_another_at_every_token():
    g = torch.stack([gaussian(SEEDS[0], place, 4096) for place in range(3)])
    assert g.norm(dim=-1).tolist() == pytest.approx([64.0] * 3, rel=0.05)
    assert (g @ g.T / 4096 - torch.eye(3)).abs().max() < 0.1


def test_norms_are_shares_of_the_streams(lm, asked):
    found, cost = ActivationNoise(layer=0.5).candidates(lm, asked, 4, 0, False)
    with torch.no_grad():
        streams = [
            lm.model(torch.tensor([t]), output_hidden_states=True).hidden_states[2][0, 1:]
            for t in asked.tokens
        ]
    median = torch.cat(streams).norm(dim=-1).median().item()
    assert found.layer == 2
    assert found.norms == pytest.approx([median * s for s in (*SHARES, SHARES[0])])
    assert stream_norm(lm, asked, 2)[0] == pytest.approx(median)
    assert cost == pytest.approx(sum(map(len, asked.tokens)) * 3 / lm.depth)


def test_another_number_of_rows_is_refused(lm):
    with (
        pytest.raises(MelboError, match="got 4 streams of noise for a batch of 1 rows"),
        torch.no_grad(),
        edit(lm, AddNoise(1, NORMS, SEEDS)),
    ):
        lm.model(torch.tensor([[5, 6]]))


@pytest.mark.parametrize("name", ["llama", "gpt2", "gemma2", "mixtral"])
def test_weights_get_noise_of_their_size_and_are_put_back_bit_by_bit(name):
    lm = tiny_model(name, torch.bfloat16 if name == "llama" else torch.float32)
    before = {n: p.clone() for n, p in lm.model.named_parameters()}
    matrices = output_matrices(lm)
    own = {w.name for w in matrices}
    with contextlib.suppress(KeyError), perturbed(lm, matrices, 0.2, 7):
        for n, p in lm.model.named_parameters():
            off = (p.float() - before[n].float()).square().mean().sqrt()
            size = before[n].float().square().mean().sqrt()
            if n in own:
                assert off / size == pytest.approx(0.2, rel=0.1)
            else:
                assert off == 0
        raise KeyError
    assert all(torch.equal(p, before[n]) for n, p in lm.model.named_parameters())


def test_replies_are_those_of_the_noisy_model(lm, asked):
    tried = Perturbed((0.5, 0.8), (3, 4))
    table = tried.replies(lm, asked, 5, unsteered=False, progress=False)
    for i in range(2):
        with torch.no_grad(), perturbed(lm, output_matrices(lm), tried.sizes[i], tried.seeds[i]):
            for c in table.of("feature", i):
                ids = list(asked.tokens[c.prompt])
                for token in c.tokens:
                    logits = lm.model(torch.tensor([ids])).logits[0, -1]
                    assert token == int(logits.argmax())
                    ids.append(token)
    assert len({c.tokens for c in table}) > 2


def test_sizes_take_turns(lm, asked):
    found, _ = WeightNoise().candidates(lm, asked, 4, 0, False)
    assert found.sizes == (*SIZES, SIZES[0])
    assert len(set(found.seeds)) == 4


def test_quantised_and_offloaded_weights_are_refused(tmp_path):
    packed = LanguageModel(quantised(TINY["llama"]().float(), "Packed4"), tiny_tokenizer())
    away = offloaded("llama", "cpu", torch.float32, tmp_path)
    for lm, said in ((packed, "cannot be edited"), (away, "are offloaded")):
        with pytest.raises(MelboError, match=said) as err:
            WeightNoise().candidates(lm, Prompts.chat(lm, ["dog"]), 2, 0, False)
        assert "\n" not in str(err.value)
