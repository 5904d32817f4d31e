import pytest
import torch
from cases import tiny_model

from melbo import MelboError, Prompts, edit
from melbo.features.sara import Sara, scales, summary
from melbo.models.text.prompts import pad_rows

A, PLUS, MINUS = (
    torch.randn(n, 12, generator=torch.Generator().manual_seed(n), dtype=torch.float64)
    for n in (5, 7, 4)
)


@pytest.fixture(scope="module")
def lm():
    return tiny_model("llama")


@pytest.fixture(scope="module")
def some(lm):
    return Prompts.text(
        lm, ["Tell me how to bake a cake", "she and he", "what should we learn this weekend ?"]
    )


@pytest.fixture(scope="module")
def sara(lm, some):
    plus, minus = (lm.activations(some.tokens[i], 1) for i in (1, 2))
    return lambda **more: Sara(1, plus, minus, **more)


def reply(lm, edit_, ids, use_cache, n=6):
    """Greedy, batch and all."""
    with edit(lm, edit_), torch.no_grad():
        return lm.model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=n,
            do_sample=False,
            use_cache=use_cache,
            eos_token_id=None,
        )


def test_scales_equal_the_sum_written_out():
    k = 4
    own, plus, minus = (summary(x, k) for x in (A, PLUS, MINUS))
    for c, s in enumerate(scales(A, PLUS, MINUS)):
        a, p, m = own[:, c], plus[:, c], minus[:, c]
        assert s == pytest.approx(
            (a @ p / a.norm() / p.norm() - a @ m / a.norm() / m.norm()).item(), abs=1e-12
        )


def test_to_attract_what_is_repelled_is_nothing_and_swapping_turns_the_sign():
    assert torch.equal(scales(A, PLUS, PLUS), torch.zeros(12, dtype=torch.float64))
    assert torch.allclose(scales(A, PLUS, MINUS, 3), -scales(A, MINUS, PLUS, 3), atol=1e-15)


def test_signs_that_an_svd_leaves_open_do_not_matter(monkeypatch):
    truth = scales(A, PLUS, MINUS)
    svd = torch.linalg.svd
    draw = torch.Generator().manual_seed(0)

    def flipped(*args, **kwargs):
        U, S, V = svd(*args, **kwargs)
        sign = torch.randint(0, 2, (len(S), 1), generator=draw).double() * 2 - 1
        return U * sign.T, S, V * sign

    monkeypatch.setattr(torch.linalg, "svd", flipped)
    for _ in range(5):
        assert torch.allclose(scales(A, PLUS, MINUS), truth, atol=1e-12)


@pytest.mark.parametrize("truncation", [1, 2, 4, 99])
def test_truncation_keeps_the_leading_directions(truncation):
    kept = summary(A, min(truncation, 4))
    assert kept.shape == (min(truncation, 4), 12)
    assert torch.allclose(kept.norm(dim=-1), torch.linalg.svdvals(A)[: len(kept)])
    assert scales(A, PLUS, MINUS, truncation).shape == (12,)
    assert torch.equal(scales(A, PLUS, MINUS, 99), scales(A, PLUS, MINUS))


def test_coefficient_zero_leaves_logits_untouched(lm, some, sara):
    ids = torch.tensor([some.tokens[0]])
    plain = lm.model(ids).logits
    with edit(lm, sara(coefficient=0.0)):
        assert torch.equal(lm.model(ids).logits, plain)
    with edit(lm, sara()):
        assert not torch.allclose(lm.model(ids).logits, plain)
    assert torch.equal(lm.model(ids).logits, plain)


def test_the_input_of_the_block_is_scaled(lm, some, sara):
    own = lm.activations(some.tokens[0], 1)
    e = sara(coefficient=0.7)
    seen = []
    handle = lm.blocks[1].register_forward_hook(
        lambda m, a, k, out: seen.append(a[0] if a else k["hidden_states"]), with_kwargs=True
    )
    with edit(lm, e):
        lm.model(torch.tensor([some.tokens[0]]))
    handle.remove()
    assert torch.allclose(seen[0][0], own * (1 + 0.7 * scales(own, e.attract, e.repel)), atol=1e-9)


def test_replies_are_the_same_with_a_cache_and_without_one(lm, some, sara):
    for i in range(3):
        ids = torch.tensor([some.tokens[i]])
        for coefficient in (1.0, -3.0):
            assert torch.equal(
                *(
                    reply(lm, sara(coefficient=coefficient), ids, use_cache)
                    for use_cache in (True, False)
                )
            )


def test_rows_of_a_batch_have_factors_of_their_own_padding_left_out(lm, some, sara):
    ids, mask = pad_rows(some.tokens, lm.pad, side="left")
    with edit(lm, sara()):
        together = lm.model(ids, attention_mask=mask.long()).logits[:, -1]
    for i in range(3):
        with edit(lm, sara()):
            assert torch.allclose(
                together[i], lm.model(torch.tensor([some.tokens[i]])).logits[0, -1], atol=1e-6
            )


def test_the_next_prompt_is_read_anew(lm, some, sara):
    with edit(lm, sara()):
        lm.model(torch.tensor([some.tokens[0]]))
        second = lm.model(torch.tensor([some.tokens[1]])).logits
    with edit(lm, sara()):
        assert torch.equal(lm.model(torch.tensor([some.tokens[1]])).logits, second)


def test_what_cannot_work_says_so(lm, sara):
    with pytest.raises(MelboError, match="widths 12, 7 and 12"):
        scales(A, A[:, :7], A)
    with pytest.raises(MelboError, match="truncation is 0"):
        scales(A, PLUS, MINUS, 0)
    wide = torch.ones(3, 33)
    with (
        pytest.raises(MelboError, match=r"activations to attract of shape \(3, 33\)"),
        edit(lm, Sara(1, wide, wide)),
    ):
        pass
    with pytest.raises(MelboError, match="no block reads layer 4"):
        lm.activations((1, 2), 4)
    with (
        pytest.raises(MelboError, match="cannot steer at layer -1"),
        edit(lm, Sara(-1, torch.ones(3, 32), torch.ones(3, 32))),
    ):
        pass


def test_to_derivatives_the_factors_are_constants(lm, some, sara):
    e, seen = sara(coefficient=0.7), {}
    own = lm.activations(some.tokens[0], 1)
    factors = 1 + 0.7 * scales(own, e.attract, e.repel)

    def enter(block, args, kwargs):
        hidden = args[0] if args else kwargs["hidden_states"]
        seen["in"] = hidden.detach().requires_grad_()
        return ((seen["in"], *args[1:]), kwargs) if args else (args, kwargs)

    def leave(block, args, kwargs):
        seen["out"] = args[0] if args else kwargs["hidden_states"]

    block = lm.blocks[1]
    # one after the other: what enters the edit, and what leaves it
    with (
        block.register_forward_pre_hook(enter, with_kwargs=True),
        edit(lm, e),
        block.register_forward_pre_hook(leave, with_kwargs=True),
    ):
        lm.model(torch.tensor([some.tokens[0]]))
    u = torch.randn(seen["out"].shape, generator=torch.Generator().manual_seed(1)).to(own)
    [gradient] = torch.autograd.grad((seen["out"] * u).sum(), seen["in"])
    assert torch.allclose(gradient, u * factors, atol=1e-9)
