import pytest
import torch
from cases import FLOAT32_INSIDE, WIDTH, padded, prompts, tiny_model
from streams import assert_close, hooks, random, shared, streams

import melbo
from melbo import Add, CausalMap, FeatureSet, MelboError


def feature(vector, source, target, **settings):
    """A feature that steers with ``vector``."""
    scale = vector.norm().item()
    v = vector[None] / scale
    meta = {"map": settings} if settings else {}
    return FeatureSet(v, v.clone(), torch.ones(1, dtype=v.dtype), scale, source, target, meta)


# --- steering is the perturbation of the map


@pytest.mark.parametrize("skip_first", [False, True])
@pytest.mark.parametrize("name", ["llama", "gpt2", "gemma2", "falcon", "falcon_alibi", "mistral"])
def test_steering_does_what_the_map_measured(name, skip_first):
    lm = shared(name)
    texts = prompts((9, 6, 8))
    v = 2 * random(WIDTH)
    for source, target in [(0, 2), (1, lm.depth - 1), (1, lm.depth)]:
        plain, steered, fitted = [], [], []
        for tokens in texts.tokens:
            ids = torch.tensor([tokens])
            plain.append(streams(lm, ids)[target][0, -3:].mean(0))
            with melbo.edit(lm, Add(source, v, skip_first=skip_first)):
                steered.append(streams(lm, ids)[target][0, -3:].mean(0))
            with melbo.steer(lm, feature(v, source, target, skip_first=skip_first)):
                fitted.append(streams(lm, ids)[target][0, -3:].mean(0))
        for batch in (1, 3):
            settings = {"skip_first": skip_first, "prompt_batch": batch}
            want = CausalMap(lm, texts, source, target, **settings).value(v[None])[0]
            assert want.norm() > 0.1
            tolerance = 1e-6 if name in FLOAT32_INSIDE else 1e-9
            assert_close((torch.stack(steered) - torch.stack(plain)).mean(0), want, tolerance)
            assert_close((torch.stack(fitted) - torch.stack(plain)).mean(0), want, tolerance)


def test_skipping_the_first_token_changes_the_response():
    lm, v = shared("llama"), random(1, WIDTH)
    values = [CausalMap(lm, prompts((9, 6)), 1, 3, skip_first=s).value(v) for s in (False, True)]
    assert (values[0] - values[1]).norm() > 1e-3


def test_features_fitted_at_the_target_positions_steer_there():
    lm = shared("llama")
    cmap = CausalMap(lm, prompts((9,)), 1, 3, positions="target")
    features = melbo.fit(cmap, melbo.Exponential(2, 0.5, max_steps=1), progress=False).features
    ids = torch.tensor(cmap.prompts.tokens)
    with melbo.steer(lm, features[0]):
        steered = streams(lm, ids)[3][0, -3:].mean(0)
    assert_close(
        steered - streams(lm, ids)[3][0, -3:].mean(0), cmap.value(0.5 * features.V)[0], 1e-9
    )


# --- several features


@torch.no_grad()
def test_per_row_features_steer_their_rows():
    lm = shared("llama")
    ids, mask = padded((9, 6), "left")
    rows = [feature(random(WIDTH, seed=i), 1, 3) for i in range(2)]
    scale = rows[0].scale
    V, U, alpha = (torch.cat([getattr(row, name) for row in rows]) for name in ("V", "U", "alpha"))
    features = FeatureSet(V, U, alpha, scale, 1, 3)
    with melbo.steer(lm, features, strength=-0.5, per_row=True):
        got = streams(lm, ids, mask)[3]
    for i, row in enumerate(features):
        with melbo.edit(lm, Add(1, -0.5 * scale * row.V[0])):
            assert_close(got[i][mask[i]], streams(lm, ids, mask)[3][i][mask[i]], 1e-12)


@torch.no_grad()
def test_several_features_add_up():
    lm = shared("llama")
    ids, mask = padded((9, 6))
    a, b = random(WIDTH), random(WIDTH, seed=1)
    with melbo.steer(lm, feature(a, 1, 3), feature(b, 1, 3)):
        together = streams(lm, ids, mask)[4]
    with melbo.edit(lm, Add(1, a + b)):
        assert_close(together, streams(lm, ids, mask)[4], 1e-10)
    with melbo.edit(lm, Add(1, a)), melbo.edit(lm, Add(1, b)):
        assert_close(together, streams(lm, ids, mask)[4], 1e-10)


# --- leaving, and refusing to enter


@torch.no_grad()
def test_leaving_restores_the_logits_bit_for_bit():
    lm = tiny_model("llama")
    ids, mask = padded((9, 6), "left")
    run = {"input_ids": ids, "attention_mask": mask.long()}
    before = lm.model(**run).logits
    weights = {k: v.clone() for k, v in lm.model.state_dict().items()}
    with melbo.edit(lm, Add(1, random(WIDTH)), Add(2, random(WIDTH))):
        assert (lm.model(**run).logits - before).abs().max() > 1e-3
    assert torch.equal(lm.model(**run).logits, before)
    with pytest.raises(ZeroDivisionError), melbo.steer(lm, feature(random(WIDTH), 1, 3)):
        raise ZeroDivisionError
    assert torch.equal(lm.model(**run).logits, before)
    assert all(torch.equal(weights[k], v) for k, v in lm.model.state_dict().items())
    assert not hooks(lm)


def test_a_set_of_several_features_or_of_another_model_is_refused():
    lm = shared("llama")
    one = feature(random(WIDTH), 1, 3)
    two = FeatureSet(one.V.repeat(2, 1), one.U.repeat(2, 1), one.alpha.repeat(2), one.scale, 1, 3)
    with pytest.raises(MelboError, match="got a set of 2 features"):
        melbo.steer(lm, two)
    foreign = one.with_meta(map={"model": {"name": "another", "sha256": "0" * 64}})
    with pytest.raises(MelboError, match=r"fitted on another .*this is llama"):
        melbo.steer(lm, foreign)
