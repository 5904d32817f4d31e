"""Amplification of tiny models' replies, against losses and gradients of plain passes."""

import math
from dataclasses import replace

import pytest
import torch
from adapters import a_map, a_set
from cases import tiny_model
from toys import directions

import melbo.audit.amplify as room
from melbo import AdapterSet, FeatureSet, MelboError
from melbo.audit.amplify import amplify, mean_adapter
from melbo.models.edits import edit
from melbo.models.weights.low_rank import pairs as unflattened
from melbo.models.weights.low_rank import part_widths

BEGIN = tuple(range(3, 13))
REPLIES = [
    ((*BEGIN, 20), (30, 31, 32)),
    ((*BEGIN, 21, 22, 23), (30,)),
    ((*BEGIN, 24, 25), (30, 31, 32, 30, 31)),
    ((*BEGIN, 20), (30, 2)),
]
NORM = 5.0


def a_direction(lm, k=1, source=1, **placed):
    rows = directions(k, lm.width)
    meta = {"map": {"model": lm.describe(), "source": source, "target": 3, **placed}}
    return FeatureSet(rows, rows, torch.ones(k).double(), 2.0, source, 3, meta)


def plain_loss(lm, features, replies=REPLIES):
    """Mean over replies of the mean over tokens of −log p, each row read alone."""
    means = []
    for prompt, reply in replies:
        with edit(lm, features.edit(), prompt=len(prompt)):
            logits = lm.model(torch.tensor([[*prompt, *reply]]), use_cache=False).logits[0]
        said = logits[len(prompt) - 1 : -1].log_softmax(-1)
        means.append(-said.gather(1, torch.tensor(reply)[:, None]).mean())
    return torch.stack(means).mean()


def starts(lm):
    """Directions at three placements, and adapters, each a set of one."""
    return {
        "direction": a_direction(lm),
        "skip first": a_direction(lm, skip_first=True),
        "last tokens": a_direction(lm, positions="target", target_tokens=3),
        "first block": a_direction(lm, source=0),
    }


@pytest.mark.parametrize("name", ["llama", "gpt2", "gemma2", "mixtral", "falcon_alibi", "lfm2"])
@pytest.mark.parametrize("kind", ["direction", "skip first", "last tokens", "first block"])
def test_loss_and_gradient_are_those_of_rows_read_alone(name, kind, monkeypatch):
    monkeypatch.setattr(room, "_ROWS", 3)  # several batches
    lm = tiny_model(name)
    start = starts(lm)[kind]
    sphere = room._Sphere.of(start, NORM, 0)
    loss = room._Loss(lm, REPLIES, sphere)
    for x in (sphere.first, sphere.projected(torch.randn_like(sphere.first)), sphere.first):
        point = x.clone().requires_grad_()
        truth = plain_loss(lm, sphere.feature(point))
        (slope,) = torch.autograd.grad(truth, point)
        value, gradient = loss.value_and_gradient(x)
        assert value == pytest.approx(truth.item(), rel=1e-5)
        assert torch.allclose(gradient, slope, rtol=1e-4, atol=1e-6 * slope.norm().item())
    assert loss._fast == (kind != "last tokens")


@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_loss_and_gradient_of_adapters_are_those_of_rows_read_alone(name):
    cmap = a_map(name)
    sphere = room._Sphere.of(a_set(cmap, 1), NORM, 0)
    loss = room._Loss(cmap.lm, REPLIES, sphere)
    assert loss._fast
    for _ in range(2):
        point = sphere.first.clone().requires_grad_()
        truth = plain_loss(cmap.lm, sphere.feature(point))
        (slope,) = torch.autograd.grad(truth, point)
        value, gradient = loss.value_and_gradient(point)
        assert value == pytest.approx(truth.item(), rel=1e-6)
        assert torch.allclose(gradient, slope, rtol=1e-5, atol=1e-8)


def state(lm):
    """All that could be left behind on a model."""
    return [
        (
            n,
            m,
            dict(m.__dict__.get("_forward_hooks", {})),
            dict(m._forward_pre_hooks),
            "forward" in m.__dict__,
        )
        for n, m in lm.model.named_modules()
    ]


@pytest.mark.parametrize("adapters", [False, True])
def test_the_loss_falls_at_the_given_norm_and_the_model_is_as_it_was(adapters):
    cmap = a_map("llama", torch.float32)
    lm = cmap.lm
    start = a_set(cmap, 3) if adapters else a_direction(lm, 3)
    before, weights = state(lm), {n: p.clone() for n, p in lm.model.named_parameters()}
    made = amplify(lm, REPLIES, start, norm=NORM, steps=12, progress=False)
    features = made.features
    assert type(features) is type(start)
    assert (len(features), features.scale, len(made.losses)) == (1, NORM, 12)
    assert features.placement == start.placement
    assert made.losses[-1] < 0.8 * made.losses[0]
    with torch.no_grad():
        assert plain_loss(lm, features).item() < made.losses[0]
    assert features.V.norm().item() == pytest.approx(1, abs=1e-5)
    if isinstance(features, AdapterSet):
        edits = unflattened(features.sites, features.V, torch.tensor([features.scale]))
        for a, b in edits:
            assert (a.norm() * b.norm()).item() == pytest.approx(NORM, rel=1e-5)
    else:
        assert features.edit().vectors.norm().item() == pytest.approx(NORM, abs=1e-4)
    assert state(lm) == before
    for name, p in lm.model.named_parameters():
        assert p.grad is None
        assert not p.requires_grad
        assert torch.equal(p, weights[name])
    assert features.meta["amplified"]["replies"] == len(REPLIES)


def test_the_first_loss_is_that_of_the_mean_and_of_an_empty_set_a_random_one():
    lm = tiny_model("llama")
    some = a_direction(lm, 3)
    with torch.no_grad():
        mean = replace(some.averaged("mean"), scale=NORM)
        made = amplify(lm, REPLIES, some, norm=NORM, steps=1, progress=False)
        assert made.losses[0] == pytest.approx(plain_loss(lm, mean).item(), rel=1e-5)
        one = replace(some.random(1, torch.Generator().manual_seed(7)), scale=NORM)
        made = amplify(lm, REPLIES, some[:0], norm=NORM, steps=1, seed=7, progress=False)
        assert made.losses[0] == pytest.approx(plain_loss(lm, one).item(), rel=1e-5)


def test_steps_are_those_of_adam_in_units_of_the_typical_entry():
    lm = tiny_model("llama")
    start = a_direction(lm)
    point = (start.V[0] * math.sqrt(lm.width)).clone().requires_grad_()
    adam = torch.optim.Adam([point], lr=0.05)
    for _ in range(3):
        v = (point / math.sqrt(lm.width))[None]
        loss = plain_loss(lm, replace(start.replaced(v, start.U, start.alpha), scale=NORM))
        (point.grad,) = torch.autograd.grad(loss, point)
        adam.step()
        with torch.no_grad():
            point.mul_(math.sqrt(lm.width) / point.norm())
    made = amplify(lm, REPLIES, start, norm=NORM, steps=3, learning_rate=0.05, progress=False)
    expected = torch.nn.functional.normalize(point.detach(), dim=0)
    assert torch.allclose(made.features.V[0], expected, atol=1e-6)


def test_the_mean_of_adapters_is_the_nearest_rank_one_matrix_whatever_their_signs():
    adapters = a_set(a_map("llama"), 3)
    sites, widths = adapters.sites, list(part_widths(adapters.sites))
    a_changed = [part * (-1 if i < 2 else 1) for i, part in enumerate(adapters.V.split(widths, -1))]
    turned = adapters.replaced(torch.cat(a_changed, -1), adapters.U, adapters.alpha)

    def matrices(V):
        edits = unflattened(sites, V, torch.ones(len(V)).to(V))
        return [(b[:, :, None] * a[:, None]).mean(0) for a, b in edits]

    for some in (adapters, turned):
        for M, found in zip(matrices(some.V), matrices(mean_adapter(some)[None]), strict=True):
            U, _, Vh = torch.linalg.svd(M)
            assert torch.allclose(found, U[:, :1] @ Vh[:1], atol=1e-6)


def test_bad_input_is_refused_in_one_line():
    lm = tiny_model("llama")
    start, narrow = a_direction(lm), torch.eye(8)[:1]
    good = {"norm": NORM, "steps": 1, "progress": False}

    def refused(match, replies=REPLIES, features=start, **settings):
        with pytest.raises(MelboError, match=match) as caught:
            amplify(lm, replies, features, **{**good, **settings})
        assert "\n" not in str(caught.value)

    refused("got no replies to amplify", [])
    refused("the reply of pair 1 is blank", [REPLIES[0], (BEGIN, ())])
    refused("the reply of pair 0 is blank", [(BEGIN, tuple(lm.eos))])
    refused("the prompt of pair 0 is blank", [((), (30,))])
    refused("come to 110 tokens, llama reads at most 64", [(BEGIN, (30,) * 100)])
    refused("norm is 0: expected a positive number", norm=0)
    refused("norm is nan", norm=math.nan)
    refused("learning_rate is -1", learning_rate=-1)
    refused("steps is 0: expected at least 1", steps=0)
    refused("the loss is not finite after 0 steps", norm=1e300)
    refused("fitted on gpt2", features=a_set(a_map("gpt2"), 1))
    refused(
        "have width 8",
        features=FeatureSet(narrow, narrow, torch.zeros(1), 1.0, 1, 3),
    )


def test_passes_that_disagree_with_plain_ones_are_not_used(monkeypatch):
    lm = tiny_model("llama")
    plain = room.reply_nll

    def wrong(lm, model, batch, once=True, before=None):
        return plain(lm, model, batch, once, before) * (1.01 if once else 1)

    monkeypatch.setattr(room, "reply_nll", wrong)
    start = a_direction(lm)
    made = amplify(lm, REPLIES, start, norm=NORM, steps=1, progress=False)
    with torch.no_grad():
        truth = plain_loss(lm, replace(start, scale=NORM)).item()
    assert made.losses[0] == pytest.approx(truth, rel=1e-6)
