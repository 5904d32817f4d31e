"""Results of the library: each prints in a line, and has a table, a data frame and a figure."""

import html

import numpy as np
import pytest
import torch
from audit_findings import finding, result
from cases import tiny_model
from toys import directions, planted

from melbo import (
    CausalMap,
    Exponential,
    FeatureSet,
    Linear,
    MelboError,
    Prompts,
    calibrate,
    compare,
    fit,
    fit_seeds,
    generate,
    rank,
)
from melbo.audit.result import Findings
from melbo.display.picture import Picture


@pytest.fixture(scope="module")
def lm():
    return tiny_model("llama")


@pytest.fixture(scope="module")
def prompts(lm):
    texts = ["Tell me how to bake a cake"], ["dog and sun", "he or she"], ["red or blue ?"]
    return [Prompts.chat(lm, t) for t in texts]


@pytest.fixture(scope="module")
def fitted(lm, prompts):
    return fit_seeds(CausalMap(lm, prompts[0]), Exponential(3, max_steps=3), 2, progress=False)


@pytest.fixture(scope="module")
def ranking(lm, prompts, fitted):
    more = {"num_controls": 4, "max_new_tokens": 4, "progress": False}
    return rank(lm, fitted.features, *prompts[1:], **more)


@pytest.fixture(scope="module")
def comparison(lm, prompts):
    return compare(
        CausalMap(lm, prompts[0]),
        prompts[2],
        2.0,
        recipes=["exponential", "random"],
        num_factors=2,
        seeds=2,
        times=(1.0, 2.0),
        max_new_tokens=2,
        progress=False,
    )


def points(picture, axes=0):
    """Points of all lines on some axes."""
    return np.concatenate([line.get_xydata() for line in picture.axes[axes].lines])


def shown(one, line):
    """Check the parts that all results have; give the data frame and the figure."""
    assert repr(one) == f"<{type(one).__name__}: {line}>"
    assert line in html.unescape(one._repr_html_())
    picture = one.plot()
    assert isinstance(picture, Picture)
    assert picture._repr_png_().startswith(b"\x89PNG")
    return one.to_frame(), picture


def test_a_feature_does_not_print_its_components(fitted):
    one = fitted.features[1]
    assert repr(one) == f"<FeatureSet: 1 feature of llama, layer 1 to 3, R = {one.scale:.3g}>"
    assert len(str(fitted)) < 100


def test_features(fitted):
    features = fitted.features
    line = f"3 features of llama, layer 1 to 3, R = {features.scale:.3g}"
    frame, picture = shown(features, line)
    assert frame["alpha"].tolist() == features.alpha.tolist()
    assert frame["found_again"].tolist() == features.meta["stability"]["cosine"]
    assert points(picture)[:, 1] == pytest.approx(features.alpha.numpy())
    cosines = picture.axes[1].images[0].get_array().data
    assert cosines == pytest.approx((features.V @ features.V.T).float().numpy(), abs=1e-6)


def test_a_fit(fitted):
    explained = fitted.stats["explained"]
    line = f"3 features at R = {fitted.features.scale:.3g} explain {explained:.3g}"
    frame, picture = shown(fitted, line)
    assert frame["sweep"].tolist() == [1, 2, 3]
    for axes, key in enumerate(("explained", "objective")):
        drawn = picture.axes[axes].lines[0].get_ydata()
        assert list(drawn) == frame[key].tolist() == [r[key] for r in fitted.history]
    assert fitted.features.meta["fit"]["remedy"] in fitted._repr_html_()


def test_a_fit_without_sweeps_draws_its_features():
    toy = planted(directions(4, 9), directions(4, 8, 1), lambda c: 2 * c)
    found = fit(toy, Linear(3, 1.0), progress=False)
    frame, picture = shown(found, f"3 features at R = 1 explain {found.stats['explained']:.3g}")
    assert frame.empty
    assert points(picture)[:, 1] == pytest.approx(found.features.alpha.numpy(), rel=1e-5)


def test_a_calibration(lm, prompts):
    found = calibrate(CausalMap(lm, prompts[0]), progress=False)
    line = f"R = {found.scale:.3g}, {found.relative:.2f} of the stream's median norm"
    frame, picture = shown(found, f"{line}, where the ratio is 0.5")
    few = frame[frame["directions"] == "few"]
    assert list(zip(few["scale"], few["ratio"], strict=True)) == found.curve
    assert points(picture)[: len(found.curve)] == pytest.approx(np.array(found.curve))
    assert len(frame) == len(found.curve) + len(found.solved)


def test_replies(ranking):
    replies = ranking.completions
    frame, picture = shown(replies, "24 replies to 3 prompts")
    assert frame["text"].tolist() == [c.text for c in replies]
    told = frame[frame["kind"] == "feature"].groupby("feature")["kl"].mean()
    assert points(picture)[:3, 1] == pytest.approx(told.to_numpy())


def test_replies_without_unsteered_ones_have_nothing_to_draw(lm, prompts, fitted):
    more = {"max_new_tokens": 2, "unsteered": False, "progress": False}
    replies = generate(lm, prompts[2], fitted.features, **more)
    with pytest.raises(MelboError, match="no scores of their first tokens.*unsteered=True"):
        replies.plot()


def test_a_ranking(ranking):
    frame, picture = shown(ranking, "3 features by 'novel', 4 random ones")
    assert len(frame) == 7
    first = ranking.features[0]
    assert frame.loc[0, "index"] == first.index
    assert frame.loc[0, "held_out_novelty"] == first.held_out.novelty
    both = frame[["validation_novel", "held_out_novel"]].to_numpy()
    assert np.sort(points(picture), axis=0) == pytest.approx(np.sort(both, axis=0))
    said = next(c.text for c in ranking.completions if c.prompt == 2)
    assert said in ranking._repr_html_()


def test_a_comparison(comparison):
    scale = comparison.scale_text
    frame, picture = shown(comparison, f"2 recipes compared, R = {scale}")
    assert frame["effect"].tolist() == [row.effect for row in comparison.rows]
    mean = comparison.summary[0].measures["effect"][0]
    assert points(picture)[0] == pytest.approx([1.0, mean])


def test_findings_are_still_a_dictionary():
    above, below = finding(share=0.75, base=None), finding(name="the, of", share=0.1)
    plain = result(above, below=[below])
    found = Findings(plain)
    assert found == plain
    frame, picture = shown(found, f"1 finding in {plain['model']['name']}")
    assert frame["holds"].tolist() == [True, False]
    assert frame["share"].tolist() == [0.75, 0.1]
    assert [frame.loc[0, "low"], frame.loc[0, "high"]] == above["interval"]
    assert [0.75, 0] in points(picture).tolist()
    assert "75 %" in found._repr_html_()
    assert "the, of" in found._repr_html_()


def test_an_audit_that_found_nothing_says_what_that_means():
    found = Findings(result())
    assert "does not mean that nothing is hidden" in found._repr_html_()
    assert found.to_frame().empty
    assert found.plot()._repr_png_()


def test_joined_and_random_sets_show_themselves_too(fitted):
    features = fitted.features
    some = features.random(2, torch.Generator().manual_seed(0)).join(features)
    assert some.to_frame().columns.tolist() == ["feature", "alpha"]
    assert isinstance(some, FeatureSet)
