from dataclasses import replace

import pytest
import torch
from cases import VOCAB, prompts, tiny_model

from melbo import CausalMap, Exponential, FeatureSet, MelboError, Prompts, Random, fit, load, steer
from melbo.evaluation.watch import FIRES_ABOVE, Watch, watch
from melbo.maths.linalg import random_rows
from melbo.models.text.built_in import FIT, HELD_OUT, REFERENCE, VALIDATION
from melbo.records import to_json

SHARED = (1, 9, 10)  # what all prompts of `some` begin with


def directions(source, target, num=5, scale=3.0, width=32):
    g = torch.Generator().manual_seed(0)
    V, U = (random_rows(num, width, g).double() for _ in range(2))
    return FeatureSet(V, U, torch.ones(num), scale, source, target)


def some(lengths, seed=0):
    """Random prompts that begin alike."""
    drawn = prompts(lengths, seed=seed)
    return replace(
        drawn, tokens=tuple((*SHARED, 11 + i % 2, *row) for i, row in enumerate(drawn.tokens))
    )


def plain_scores(lm, features, tokens, start, added=None):
    """From the model's own hidden states, token by token, and where they are: ``[m, 2]`` each."""
    with torch.no_grad():
        states = lm.model(torch.tensor([tokens]), output_hidden_states=True).hidden_states
    scores = torch.full((len(features), 2), -torch.inf, dtype=torch.float64)
    places = torch.zeros(len(features), 2, dtype=torch.long)
    layers = ((features.source, features.V), (features.target, features.U))
    for side, (layer, rows) in enumerate(layers):
        for t in range(start, len(tokens)):
            h = states[layer][0, t]
            if layer == features.source and added is not None:
                h = h + added
            for k, row in enumerate(rows):
                cosine = (h @ row / h.norm()).item()
                if cosine > scores[k, side]:
                    scores[k, side], places[k, side] = cosine, t
    return scores, places


def made(score, reference, sides=("source", "target"), **more):
    """A `Watch` of given scores."""
    token = torch.zeros(score.shape, dtype=torch.long)
    return Watch(
        prompts([3] * len(score)),
        sides[: score.shape[2]],
        score,
        token,
        reference,
        dict.fromkeys(range(VOCAB), ""),
        **more,
    )


@pytest.mark.parametrize(("name", "target"), [("llama", 3), ("gpt2", 2), ("gemma2", 2)])
@pytest.mark.parametrize("skip_first", [True, False])
def test_scores_equal_those_of_the_models_own_hidden_states(name, target, skip_first):
    lm, features = tiny_model(name), directions(1, target)
    drawn, reference = prompts([1, 9, 8, 4, 9, 2]), prompts([8, 8, 7, 3, 9, 1, 5, 9], seed=1)
    seen = watch(lm, features, drawn, reference, skip_first=skip_first, progress=False)
    assert seen.score.shape == (6, 5, 2)
    assert seen.sides == ("source", "target")
    tolerance = 1e-6 if name == "gemma2" else 1e-12  # softmax in float32
    for row, score, place in zip(drawn.tokens, seen.score, seen.token, strict=True):
        truth, where = plain_scores(lm, features, row, 0 if len(row) == 1 else int(skip_first))
        assert torch.allclose(score, truth, atol=tolerance)
        assert torch.equal(place, where)
    for row, score in zip(reference.tokens, seen.reference, strict=True):
        assert torch.allclose(
            score,
            plain_scores(lm, features, row, 0 if len(row) == 1 else int(skip_first))[0],
            atol=tolerance,
        )


def test_what_all_reference_prompts_begin_with_is_left_out_of_every_prompt_that_begins_so():
    lm, features = tiny_model("llama"), directions(1, 3, num=40)
    reference = some([4, 6, 5, 3, 6, 4, 5, 6], seed=1)
    other = prompts([9])  # begins differently
    leaves = replace(
        other, tokens=((*SHARED[:2], 50, 51, 52),)
    )  # begins alike, then goes its own way early
    short = replace(other, tokens=(SHARED,))
    for drawn, start in ((some([5]), 3), (other, 1), (leaves, 2), (short, 2)):
        seen = watch(lm, features, drawn, reference, progress=False)
        truth, where = plain_scores(lm, features, drawn.tokens[0], start)
        assert torch.allclose(seen.score[0], truth, atol=1e-12)
        assert torch.equal(seen.token[0], where)
        assert seen.token.min() == start


def test_a_reference_of_the_same_chat_template_is_not_judged_by_the_template():
    lm, features = tiny_model("llama"), directions(1, 3, num=40)
    texts = [
        f"{a} {b}" for a in ("cat", "dog", "sun") for b in ("is red", "was not blue ?", "learn")
    ]
    reference, drawn = (
        Prompts.chat(lm, t, system="Tell me how to bake a cake What should I do this weekend")
        for t in (texts, ["she and he"])
    )
    seen = watch(lm, features, drawn, reference, progress=False)
    assert seen.token.min() > 13
    assert (seen.reference.std(0) > 1e-3).all()


def test_what_steers_the_model_is_seen():
    lm, features = tiny_model("llama"), directions(1, 3)
    drawn, reference = some([5, 6, 2, 6]), some([4, 6, 5, 3, 6, 4, 5, 6], seed=1)
    plain = watch(lm, features, drawn, reference, progress=False)
    with steer(lm, features[2], strength=2.0):
        steered = watch(lm, features, drawn, reference, progress=False)
        for row, score in zip(
            (*drawn.tokens, *reference.tokens),
            torch.cat([steered.score, steered.reference]),
            strict=True,
        ):
            truth, _ = plain_scores(
                lm, features, row, 3, added=6 * features.V[2]
            )  # hidden_states shows what block 1 is called with before the hook
            assert torch.allclose(score, truth, atol=1e-12)
    assert (steered.score[:, 2, 0] > plain.score[:, 2, 0]).all()
    assert torch.equal(watch(lm, features, drawn, reference, progress=False).score, plain.score)


def test_a_planted_direction_fires_beside_the_unsteered_reference_and_is_described():
    # 32 dimensions hold no cosine that is further off
    low = {"fires_above": 4.0, "progress": False}
    lm, features = tiny_model("llama"), directions(1, 3, scale=50.0)
    drawn, reference = some([5, 6, 2, 6]), some([4, 6, 5, 3, 6, 4, 5, 6], seed=1)
    plain = watch(lm, features, drawn, reference, **low)
    with steer(lm, features[2]):
        steered = watch(lm, features, drawn, reference, **low)
    judged = replace(steered, reference=plain.reference)
    assert judged.fires[:, 2, 0].all()
    found = judged.describe()
    assert to_json(found)
    assert found["counts"] == judged.fires.sum((1, 2)).tolist()
    assert found["expected_by_chance"] == plain.expected == judged.expected
    assert len(found["firings"]) == judged.fires.sum()
    assert [f["z"] for f in found["firings"]] == sorted(
        (f["z"] for f in found["firings"]), reverse=True
    )
    for f in found["firings"]:
        at = f["prompt"], f["feature"], ("source", "target").index(f["side"])
        assert judged.fires[at]
        assert f["text"] == drawn.texts[f["prompt"]]
        assert f["z"] == judged.z[at].item() > 4
        assert f["p"] == judged.p[at].item() == pytest.approx(1 / 9)
        assert f["token"] == lm.tokenizer.decode([drawn.tokens[f["prompt"]][judged.token[at]]])


@pytest.mark.parametrize("fires_above", [2.0, 1e9])
def test_the_highest_that_did_not_fire_are_told_as_closest(fires_above):
    g = torch.Generator().manual_seed(0)
    score, reference = torch.rand(2, 3, 2, generator=g), torch.rand(9, 3, 2, generator=g)
    score[0, 1, 1] = 50.0
    watched = made(score, reference, fires_above=fires_above)
    places = [(n, m, s) for n in range(2) for m in range(3) for s in range(2)]
    quiet = sorted((at for at in places if not watched.fires[at]), key=lambda at: -watched.z[at])
    assert len(quiet) == (11 if fires_above == 2 else 12)
    found = watched.describe()
    told = [
        (f["prompt"], f["feature"], ("source", "target").index(f["side"])) for f in found["closest"]
    ]
    assert told == quiet[:5]
    assert len(found["firings"]) == 12 - len(quiet)


def test_z_and_p_and_firing_written_out():
    g = torch.Generator().manual_seed(0)
    reference = torch.rand(9, 3, 2, generator=g).double()
    score = torch.cat(
        [5 * torch.rand(5, 3, 2, generator=g).double(), reference[:1]]
    )  # the last ties with a reference prompt
    seen = made(score, reference)
    for i in range(6):
        for k in range(3):
            for side in range(2):
                s, others = score[i, k, side].item(), reference[:, k, side].tolist()
                mean = sum(others) / 9
                z = (s - mean) / (sum((x - mean) ** 2 for x in others) / 8) ** 0.5
                assert seen.z[i, k, side].item() == pytest.approx(z)
                assert seen.p[i, k, side].item() == pytest.approx(
                    (1 + sum(x >= s for x in others)) / 10
                )
                assert seen.fires[i, k, side].item() == (z > FIRES_ABOVE and s > max(others))
    assert seen.fires.any()
    assert not seen.fires.all()


def test_above_four_deviations_is_not_enough_where_a_reference_prompt_is_higher():
    reference = torch.zeros(40, 1, 1).double()
    reference[0] = 1.0
    seen = made(torch.tensor([[[0.9]], [[1.1]]]).double(), reference)
    assert (seen.z > 4).all()
    assert seen.fires.flatten().tolist() == [False, True]


def test_the_expected_number_is_that_of_each_reference_prompt_judged_by_the_others():
    g = torch.Generator().manual_seed(1)
    reference = (
        torch.randn(12, 30, 2, generator=g) / torch.randn(12, 30, 2, generator=g)
    ).double()  # heavy tails
    fired = 0
    for i in range(12):
        others = torch.stack([reference[j] for j in range(12) if j != i])
        fired += int(made(reference[i : i + 1], others).fires.sum())
    assert fired > 10
    assert made(reference[:1], reference).expected == pytest.approx(fired / 12)


def test_few_normal_scores_fire():
    draw = torch.randn(64, 2000, 2, generator=torch.Generator().manual_seed(0))
    seen = made(draw[:32], draw[32:], fires_above=4.0)
    print(f"expected {seen.expected:.2f} of 4000, found {seen.fires.sum() / 32:.2f}")
    assert 0 < seen.expected < 2
    assert seen.fires.sum() / 32 < 2


def test_scores_that_only_rounding_tells_apart_do_not_fire():
    reference = 0.5 + 1e-7 * torch.rand(16, 1, 1, generator=torch.Generator().manual_seed(0))
    seen = made(torch.tensor([[[0.5 + 4e-7]], [[0.6]]]), reference)
    assert seen.fires.flatten().tolist() == [False, True]
    assert torch.isfinite(seen.z).all()


def test_where_u_is_no_direction_of_the_stream_only_the_source_side_is_watched():
    lm = tiny_model("llama")
    features = fit(
        CausalMap(lm, prompts([5, 6]), 1, 3, concatenate=True), Random(4, 1.0), progress=False
    ).features
    drawn, reference = some([5, 6]), some([4, 6, 5, 3, 6, 4, 5, 6], seed=1)
    seen = watch(lm, features, drawn, reference, progress=False)
    assert seen.sides == ("source",)
    assert (
        seen.score.shape
        == seen.token.shape
        == seen.z.shape
        == seen.p.shape
        == seen.fires.shape
        == (2, 4, 1)
    )
    whole = watch(lm, replace(features, U=features.V), drawn, reference, progress=False)
    assert torch.equal(seen.score, whole.score[..., :1])
    assert to_json(seen.describe())


def test_half_precision_is_projected_in_float32():
    drawn, reference = some([5, 6, 2, 6]), some([4, 6, 5, 3, 6, 4, 5, 6], seed=1)
    features = directions(1, 3)
    half, whole = (
        watch(tiny_model("llama", dtype), features, drawn, reference, progress=False)
        for dtype in (torch.bfloat16, torch.float64)
    )
    assert half.score.dtype == half.z.dtype == torch.float32
    assert torch.allclose(half.score.double(), whole.score, atol=0.02)
    lm = tiny_model("llama", torch.bfloat16)
    hidden = (
        lm.capture(
            torch.tensor([drawn.tokens[0]]),
            torch.ones(1, len(drawn.tokens[0]), dtype=torch.bool),
            1,
            3,
        )
        .hidden[0, 3:]
        .float()
    )
    alone = watch(lm, features, drawn[0], reference, progress=False)
    assert torch.allclose(
        alone.score[0, :, 0],
        (torch.nn.functional.normalize(hidden, dim=-1) @ features.V.float().T).amax(0),
        atol=1e-6,
    )


def test_features_below_the_first_block_and_up_to_the_last():
    lm, features = tiny_model("llama"), directions(0, -1)
    drawn, reference = some([5, 6]), some([4, 6, 5, 3, 6, 4, 5, 6], seed=1)
    seen = watch(lm, features, drawn, reference, progress=False)
    ids, mask = (
        torch.tensor([drawn.tokens[1]]),
        torch.ones(1, len(drawn.tokens[1]), dtype=torch.bool),
    )
    output = lm.capture(ids, mask, 0, lm.depth).output[0, 3:]
    assert torch.allclose(
        seen.score[1, :, 1],
        (torch.nn.functional.normalize(output, dim=-1) @ features.U.T).amax(0),
        atol=1e-12,
    )


def test_what_cannot_work_says_so():
    lm, features = tiny_model("llama"), directions(1, 3)
    drawn, reference = some([5, 6]), some([4, 6, 5, 3, 6, 4, 5, 6], seed=1)
    with pytest.raises(
        MelboError,
        match="got 7 different reference prompts, expected at least 8: "
        "melbo.models.text.built_in.REFERENCE",
    ):
        watch(lm, features, drawn, reference[:7])
    twice = replace(reference[:7], texts=reference.texts[:7] * 2, tokens=reference.tokens[:7] * 2)
    with pytest.raises(MelboError, match="got 7 different reference prompts"):
        watch(lm, features, drawn, twice)
    among = replace(
        reference, texts=(*reference.texts, "again"), tokens=(*reference.tokens, drawn.tokens[1])
    )
    with pytest.raises(
        MelboError,
        match=r"prompt 1 \('prompt 1'\) is in the reference, expected others: take it out",
    ) as err:
        watch(lm, features, drawn, among)
    assert "\n" not in str(err.value)
    with pytest.raises(
        MelboError,
        match="got prompts of kind 'chat' and a reference of kind 'text': "
        "make both with Prompts.chat",
    ):
        watch(lm, features, replace(drawn, kind="chat"), reference)
    with pytest.raises(MelboError, match="have width 31, llama has 32"):
        watch(lm, directions(1, 3, width=31), drawn, reference)
    with pytest.raises(MelboError, match="source is 3 and target is 3: expected source < target"):
        watch(lm, directions(3, 3), drawn, reference)
    with pytest.raises(MelboError, match="target is 9, but llama has 4 blocks"):
        watch(lm, directions(1, 9), drawn, reference)
    other = fit(
        CausalMap(tiny_model("llama_tied"), drawn, 1, 2), Random(2, 1.0), progress=False
    ).features
    with pytest.raises(MelboError, match="fitted on llama_tied"):
        watch(lm, other, drawn, reference)


def test_the_reference_texts_are_ordinary_prompts_that_nothing_else_uses():
    assert len(set(REFERENCE)) == len(REFERENCE) == 32
    assert not set(REFERENCE) & {*FIT, *VALIDATION, *HELD_OUT}
    assert all(text.strip() == text and 10 < len(text) < 100 for text in REFERENCE)


def auc(high, low):
    """Chance that one of ``high`` is above one of ``low`` (Mann-Whitney); ties count half."""
    both = torch.cat([high, low])
    rank = (both[:, None] > both).sum(1) + ((both[:, None] == both).sum(1) + 1) / 2
    return (
        (rank[: len(high)].sum() - len(high) * (len(high) + 1) / 2) / (len(high) * len(low))
    ).item()


@pytest.mark.slow
def test_prompts_with_a_direction_planted_are_told_from_those_without():
    lm, R = load("smollm2"), 22.37
    drawn, reference = (Prompts.chat(lm, texts) for texts in (REFERENCE[16:], REFERENCE[:16]))
    cmap = CausalMap(lm, Prompts.chat(lm, FIT), 8, 20)
    sets = [
        fit(cmap, method, progress=False).features
        for method in (Random(4, R), Exponential(4, R, max_steps=1))
    ]
    features = replace(
        sets[0],
        **{name: torch.cat([getattr(s, name) for s in sets]) for name in ("V", "U", "alpha")},
    )
    plain = watch(lm, features, drawn, reference, progress=False)
    print(
        f"unprompted: {plain.fires.sum() / len(drawn):.3f} firings a prompt, "
        f"{plain.expected:.3f} expected of {2 * len(features)}"
    )
    for i in range(len(features)):
        with steer(lm, features[i]):
            planted = watch(lm, features, drawn, reference[:8], progress=False)
        judged = replace(planted, reference=plain.reference)
        source, target = (
            auc(planted.score[:, i, side], plain.score[:, i, side]) for side in range(2)
        )
        z, fired = (
            judged.z[:, i].median(0).values.tolist(),
            judged.fires[:, i].float().mean(0).tolist(),
        )
        print(
            f"feature {i}: AUC {source:.4f} at the source, {target:.4f} at the target; "
            f"median z {z[0]:.1f}, {z[1]:.1f}; fires on {fired}"
        )
        assert source > 0.99
        assert fired[0] > 0.9
