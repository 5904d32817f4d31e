"""The experiments on bilinear layers and gated MLPs, with small settings."""

from dataclasses import replace

import pytest
import torch

import melbo
from melbo import MelboError
from melbo.bilinear import from_block
from research.experiments import BilinearSplit, BilinearTrace, PlantedUnits, run


@pytest.fixture
def split(tiny):
    return BilinearSplit(
        model=tiny,
        positive=("you is red", "how do"),
        negative=("he was one blue", "sun is"),
        alphas=(0.5, 2.0),
    )


def last_before_norm(lm, text, block):
    """Stream that enters the norm of an MLP, and that norm."""
    norm, seen = lm.blocks[block].post_attention_layernorm, []
    handle = norm.register_forward_hook(lambda module, args, out: seen.append(args[0][0, -1]))
    lm.model(**lm.tokenizer(text, return_tensors="pt"))
    handle.remove()
    return seen[0], norm


def test_split_is_compared_with_the_mlp_behind_its_norm(split, tiny, tmp_path):
    rows = list(run(split, tmp_path, progress=False))
    assert [(row["pair"], row["kind"]) for row in rows] == [
        (pair, kind) for pair in (0, 1) for kind in ("contrast", "random")
    ]
    lm, block, alpha = melbo.load(tiny), 2, 2.0
    (h, norm), (other, _) = (
        last_before_norm(lm, t, block) for t in ("he was one blue", "you is red")
    )
    d, mlp, layer = other - h, lm.blocks[block].mlp, from_block(lm, block)
    x, root = norm(h), (h.square().mean() + norm.variance_epsilon).sqrt()
    s = norm.weight * d / root
    predicted = (layer((x + alpha * s)[None]) - layer(x[None]))[0]
    for name, real in (
        ("gate, weights", mlp(x + alpha * s) - mlp(x)),
        ("both, weights", mlp(norm(h + alpha * d)) - mlp(x)),
        ("norm", (layer(norm(h + alpha * d)[None]) - layer(x[None]))[0]),
    ):
        cosine, error = rows[0][name][block][1]
        assert error == pytest.approx(((predicted - real).norm() / real.norm()).item(), rel=1e-2)
        expected = torch.cosine_similarity(predicted, real, dim=0).item()
        assert cosine == pytest.approx(expected, abs=1e-2)
    assert all(error < 1e-4 for row in rows for found in row["neither"] for _, error in found)
    assert split.table(rows).count("| 0.5 |") == 2
    assert split.table(rows).startswith("| vectors |")
    assert (tmp_path / "picture.png").read_bytes().startswith(b"\x89PNG")


def test_pairs_have_two_texts_and_blocks_a_norm(split):
    with pytest.raises(MelboError, match="positive has 1 texts and negative 2"):
        replace(split, positive=("you is red",)).check()
    with pytest.raises(MelboError, match="expected finite numbers other than 0"):
        replace(split, alphas=(0.0,)).check()


def test_planted_units_are_found(tmp_path):
    chosen = PlantedUnits(width=24, units=4, seeds=1, sweeps=60, norm=8.0)
    rows = list(run(chosen, tmp_path, progress=False))
    assert len(rows) == 4
    for row in rows:
        assert row["quadratic"] > 0.95
        assert row["quadratic"] > row["linear"]
        assert row["random"] < 0.7
    assert "| L = R | zero |" in chosen.table(rows)


@pytest.fixture
def traced():
    return BilinearTrace(
        positive="I am very happy",
        negative="I am totally neutral",
        layer=1,
        alphas=(0.5, 1.0),
        steps=3,
        seeds=1,
    )


@pytest.mark.slow
def test_terms_sum_to_the_forward_pass_of_a_trained_transformer(traced, tmp_path):
    (row,) = run(traced, tmp_path, progress=False)
    assert [block["block"] for block in row["blocks"]] == [1, 2, 3]
    for block in row["blocks"]:
        for response in block["responses"]:
            assert response["error"] < 1e-5
            assert response["cross"] + response["self"] == pytest.approx(1)
    assert len(row["lead"]) == len(row["random lead"]) == 3
    assert row["lead"][0] == row["random lead"][0]
    assert "terms sum to the forward pass" in traced.table([row])


def test_texts_end_in_feelings_that_differ(traced):
    for positive in ("I am very tired", "I am very calm"):
        with pytest.raises(MelboError, match="expected two of happy, .* different words"):
            replace(traced, positive=positive).check()
