"""The training loop, on sums of known directions."""

import itertools

import pytest
import torch

from melbo import MelboError
from melbo.dictionary import ARCHITECTURES, Training, make, measure, train
from melbo.dictionary.training import fast_products, geometric_median, revival
from melbo.maths.geometry import match
from melbo.maths.linalg import random_rows

D, M = 16, 24
OFFSET = 30.0


def planted(n, seed=0, scale=1.0):
    """Sums of about two of M directions with strengths of .5 to 1.5, and a common offset."""
    g = torch.Generator().manual_seed(100 + seed)
    on = torch.rand(n, M, generator=g) < 2 / M
    strengths = on * (0.5 + torch.rand(n, M, generator=g))
    x = strengths @ directions()
    x[:, 0] += OFFSET
    return scale * x


def directions():
    return random_rows(M, D, torch.Generator().manual_seed(7))


def batches(x, size):
    g = torch.Generator().manual_seed(0)
    for _ in itertools.count():
        order = torch.randperm(len(x), generator=g)
        yield from (x[each][:, None] for each in order.split(size) if len(each) == size)


def fit(name, scale=1.0, tokens=60_000, seed=0, **settings):
    dictionary = make(name, D, 2 * M, k=2 if name == "topk" else None, seed=seed)
    x = planted(4000, scale=scale)
    chosen = Training(
        tokens=tokens,
        batch=100,
        rate=5e-3,
        sparsity=0.0 if name == "topk" else 0.3,
        dead_after=2000,
        **settings,
    )
    course = train([dictionary], batches(x, 100), x[:500, None], chosen, progress=False)
    return dictionary, course


@pytest.mark.slow
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_every_architecture_finds_what_is_planted_in_raw_activations(name):
    dictionary, course = fit(name)
    found = measure(dictionary, [planted(2000, seed=1)])
    assert found.variance_explained > 0.8
    torch.testing.assert_close(dictionary.W_dec.norm(dim=1), torch.ones(2 * M), atol=1e-4, rtol=0)
    assert course.tokens == 60_000
    if name == "topk":
        assert match(directions(), dictionary.W_dec).cosine.mean() > 0.9


def test_the_scale_of_activations_changes_the_scale_of_the_dictionary_only():
    # products in bfloat16 round, so it is not the same to the last digit
    small, large = (fit("topk", scale, tokens=5000)[0] for scale in (1.0, 64.0))
    torch.testing.assert_close(64 * small.b_dec, large.b_dec, rtol=1e-2, atol=1e-2)
    x = planted(200, seed=2)
    torch.testing.assert_close(64 * small(x), large(64 * x), rtol=1e-2, atol=0.5)


def test_several_layers_are_trained_as_each_alone():
    x = planted(1000)
    other = planted(1000, seed=5) * 3
    settings = Training(tokens=2000, batch=100)
    together = [make("topk", D, M, 2, seed) for seed in (0, 1)]
    both = torch.stack([x, other], 1)
    train(together, iter(both.split(100) * 3), both, settings, progress=False)
    for i, rows in enumerate((x, other)):
        alone = make("topk", D, M, 2, i)
        train([alone], iter(rows[:, None].split(100) * 3), rows[:, None], settings, progress=False)
        for name, value in alone.named_parameters():
            torch.testing.assert_close(value, dict(together[i].named_parameters())[name])


def test_a_seed_gives_the_same_dictionary_again():
    first, second = (fit("topk", tokens=3000)[0] for _ in range(2))
    for a, b in zip(first.parameters(), second.parameters(), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("name", ["topk", "relu"])
def test_dead_latents_come_back(name):
    def dead_share(weight):
        dictionary = make(name, D, 2 * M, k=2 if name == "topk" else None)
        # half of the latents are off everywhere
        dictionary.b_enc.data[:M] = -6
        x = planted(2000)
        settings = Training(
            tokens=20_000,
            batch=100,
            rate=1e-2,
            sparsity=0.0 if name == "topk" else 0.01,
            dead_after=500,
            revive=weight,
        )
        train([dictionary], batches(x, 100), x[:500, None], settings, progress=False)
        return measure(dictionary, [planted(2000, seed=1)]).dead

    assert dead_share(0.0) >= 0.4
    assert dead_share(1 / 32) < dead_share(0.0) - 0.2


def test_the_loss_that_revives_reaches_dead_latents_alone():
    dictionary = make("topk", D, M, 2)
    dead = torch.zeros(M, dtype=torch.bool)
    dead[[1, 5]] = True
    x = planted(20)
    error = torch.randn(20, D, generator=torch.Generator().manual_seed(0))
    loss = revival(dictionary, x, error, dead)
    latents = (x - dictionary.b_dec) @ dictionary.W_enc[:, dead] + dictionary.b_enc[dead]
    wanted = (error - latents @ dictionary.W_dec[dead]).square().sum(1).mean()
    torch.testing.assert_close(loss, wanted)
    loss.backward()
    assert dictionary.b_dec.grad is None
    for grad in (dictionary.W_enc.grad.T, dictionary.W_dec.grad, dictionary.b_enc.grad[:, None]):
        assert torch.equal(grad.abs().sum(1) > 0, dead)


def test_the_rate_warms_up_and_falls():
    settings = Training(tokens=10_000, batch=100, warm_up=0.1, decay=0.5)
    shares = [settings.share(step) for step in range(settings.steps)]
    assert shares[0] == pytest.approx(0.1)
    assert shares[9:51] == [1.0] * 42
    assert shares[75] == pytest.approx(0.5)
    assert 0 < shares[-1] < 0.03


def test_the_geometric_median_is_not_moved_by_few_large_rows():
    g = torch.Generator().manual_seed(0)
    rows = torch.randn(500, 4, generator=g) + 5
    rows[:20] *= 1000
    point = geometric_median(rows)
    assert (point - 5).norm() < 0.5
    assert (rows.mean(0) - 5).norm() > 50
    # nowhere near is better
    away = [(rows - point - step).norm(dim=1).mean() for step in 0.1 * torch.randn(20, 4)]
    assert all(each > (rows - point).norm(dim=1).mean() for each in away)


def test_the_precision_of_products_is_put_back():
    before = torch.get_float32_matmul_precision()
    inside = []

    def fail():
        with fast_products():
            inside.append(torch.get_float32_matmul_precision())
            raise MelboError("x")

    with pytest.raises(MelboError, match="x"):
        fail()
    assert inside == ["medium"]
    assert torch.get_float32_matmul_precision() == before


def test_activations_are_read_in_the_precision_that_the_model_has():
    before, seen = torch.get_float32_matmul_precision(), []

    def reading():
        for batch in planted(200)[:, None].split(100):
            seen.append(torch.get_float32_matmul_precision())
            yield batch

    settings = Training(tokens=200, batch=100)
    train([make("topk", D, M, 2)], reading(), planted(50)[:, None], settings, progress=False)
    assert seen == [before, before]


def with_nan(x):
    x[3, 0, 1] = float("nan")
    return x


@pytest.mark.parametrize(
    ("sample", "batch", "settings", "said"),
    [
        (torch.randn(5, 2, D), None, {}, "a layer for each dictionary"),
        (torch.ones(5, 1, D + 1), None, {}, "expected one or more of width"),
        (torch.zeros(5, 1, D), None, {}, "all activations are the same"),
        (with_nan(torch.ones(5, 1, D)), None, {}, "not finite"),
        (torch.randn(5, 1, D), with_nan(torch.ones(5, 1, D)), {}, "not finite"),
        (torch.randn(5, 1, D), None, {"tokens": 3}, "one batch or more"),
        (torch.randn(5, 1, D), None, {"rate": 0.0}, "a positive number"),
        (torch.randn(5, 1, D), None, {"warm_up": 2.0}, "shares of the steps"),
    ],
)
def test_what_cannot_be_trained_on_is_refused(sample, batch, settings, said):
    chosen = Training(**{"tokens": 10, "batch": 5, **settings})
    stream = iter([torch.randn(5, 1, D) if batch is None else batch] * 2)
    with pytest.raises(MelboError, match=said):
        train([make("topk", D, M, 2)], stream, sample, chosen, progress=False)


@pytest.mark.parametrize(
    ("name", "k", "said"),
    [("topk", 30, "expected 1 to 24"), ("relu", 3, "relu has no k"), ("sparse", None, "expected")],
)
def test_architectures_that_cannot_be_are_refused(name, k, said):
    with pytest.raises(MelboError, match=said):
        make(name, D, M, k)
