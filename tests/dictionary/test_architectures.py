import pytest
import torch
from torch.nn.functional import relu

from melbo import MelboError
from melbo.dictionary import Gated, ReLU, RescaleAndShift, Stepless, TopK
from melbo.dictionary.base import Dictionary
from melbo.maths.linalg import random_rows

KINDS = {
    "relu": ReLU,
    "gated": Gated,
    "stepless": Stepless,
    "rescale_and_shift": RescaleAndShift,
    "top_k": lambda d, m, seed=0: TopK(d, m, 3, seed),
}
PENALISED = [name for name in KINDS if name != "top_k"]


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def random(kind, d=6, m=11) -> Dictionary:
    """A dictionary in float64 whose parameters are all random."""
    dictionary = KINDS[kind](d, m).double()
    g = generator(1)
    for name, p in dictionary.named_parameters():
        noise = 0.3 * torch.randn(p.shape, generator=g, dtype=torch.float64)
        p.data = p.data + noise if name in ("t", "W_enc") else (p.data if p.ndim == 2 else noise)
    return dictionary


def activations(n=40, d=6, seed=2):
    return torch.randn(n, d, generator=generator(seed), dtype=torch.float64)


def plain_gated(x, W_gate, b_gate, r, b_mag, W_dec, b_dec, sparsity, step=True):
    """The published equations, one activation at a time, with the columns of W_dec as rows."""
    terms, latents = [], []
    frozen = W_dec.detach(), b_dec.detach()
    for one in x:
        pi = W_gate @ (one - b_dec) + b_gate
        magnitude = relu((r.exp()[:, None] * W_gate) @ (one - b_dec) + b_mag)
        f = (pi > 0).to(x) * magnitude if step else magnitude
        kept = relu(pi)
        terms.append(
            [
                (one - (W_dec.T @ f + b_dec)).square().sum(),
                sparsity * kept.abs().sum(),
                (one - (frozen[0].T @ kept + frozen[1])).square().sum(),
            ]
        )
        latents.append(f)
    columns = [torch.stack(column).mean() for column in zip(*terms, strict=True)]
    return torch.stack(latents), dict(
        zip(("reconstruction", "sparsity", "gate"), columns, strict=True)
    )


def gradients(loss, dictionary):
    dictionary.zero_grad()
    loss.backward()
    return {name: p.grad for name, p in dictionary.named_parameters()}


def test_gated_is_what_was_published():
    gated, x = random("gated"), activations()
    p = dict(gated.named_parameters())
    f, terms = plain_gated(
        x, p["W_enc"].T, p["b_enc"], p["r"], p["b_mag"], p["W_dec"], p["b_dec"], 0.2
    )
    found = gated.loss_terms(x, 0.2)
    torch.testing.assert_close(gated.encode(x), f)
    assert list(found) == list(terms)
    for name, value in terms.items():
        torch.testing.assert_close(found[name], value)
    wanted = torch.autograd.grad(sum(terms.values()), list(p.values()))
    grads = gradients(sum(found.values()), gated)
    for name, value in zip(p, wanted, strict=True):
        torch.testing.assert_close(grads[name], value)


def test_the_variant_is_gated_with_its_step_removed():
    stepless, x = random("stepless"), activations()
    p = dict(stepless.named_parameters())
    r, t = p["t"].log(), p["t"]
    assert (t > 0).all()
    args = (x, p["W_enc"].T, p["b_enc"], r, t * p["b_enc"], p["W_dec"], p["b_dec"], 0.2)
    f, terms = plain_gated(*args, step=False)
    found = stepless.loss_terms(x, 0.2)
    torch.testing.assert_close(stepless.encode(x), f)
    for name, value in terms.items():
        torch.testing.assert_close(found[name], value)
    wanted = torch.autograd.grad(sum(terms.values()), list(p.values()))
    grads = gradients(sum(found.values()), stepless)
    for name, value in zip(p, wanted, strict=True):
        torch.testing.assert_close(grads[name], value)


def test_the_step_changes_nothing_where_the_biases_are_tied_and_something_where_not():
    gated, stepless, x = random("gated"), random("stepless"), activations()
    with torch.no_grad():
        for name in ("W_enc", "b_enc", "W_dec", "b_dec"):
            getattr(gated, name).copy_(getattr(stepless, name))
        gated.r.copy_(stepless.t.log())
        assert not torch.allclose(gated.encode(x), stepless.encode(x))
        gated.b_mag.copy_(stepless.t * stepless.b_enc)
    torch.testing.assert_close(gated.encode(x), stepless.encode(x))
    ours, theirs = gated.loss_terms(x, 0.3), stepless.loss_terms(x, 0.3)
    assert ours.keys() == theirs.keys()
    for name in ours:
        torch.testing.assert_close(ours[name], theirs[name])
    a = gradients(sum(ours.values()), gated)
    b = gradients(sum(theirs.values()), stepless)
    for name in ("W_dec", "b_dec", "W_enc"):
        torch.testing.assert_close(a[name], b[name])
    tied = a["b_enc"] + stepless.t.detach() * a["b_mag"]
    torch.testing.assert_close(tied, b["b_enc"])


@pytest.mark.parametrize(
    ("kind", "term"), [("gated", "gate"), ("stepless", "gate"), ("rescale_and_shift", "correction")]
)
def test_frozen_terms_send_no_gradient_to_the_decoder(kind, term):
    dictionary, x = random(kind), activations()
    frozen = gradients(dictionary.loss_terms(x, 0.1)[term], dictionary)
    assert frozen["W_dec"] is None or not frozen["W_dec"].any()
    trained = gradients(dictionary.loss_terms(x, 0.1)["reconstruction"], dictionary)
    assert trained["W_dec"].any()
    assert trained["b_dec"].any()
    if kind == "rescale_and_shift":
        assert [name for name, g in frozen.items() if g is not None and g.any()] == ["r", "c"]
    else:
        # b_dec is reached as the centre of the encoder alone, −W_enc times what b_enc gets
        torch.testing.assert_close(frozen["b_dec"], -dictionary.W_enc @ frozen["b_enc"])


def test_rescale_and_shift_trains_its_dictionary_as_relu_does():
    corrected, plain, x = random("rescale_and_shift"), random("relu"), activations()
    plain.load_state_dict({name: getattr(corrected, name) for name in plain.state_dict()})
    a = gradients(sum(corrected.loss_terms(x, 0.1).values()), corrected)
    b = gradients(sum(plain.loss_terms(x, 0.1).values()), plain)
    for name, value in b.items():
        torch.testing.assert_close(a[name], value)


def test_rescale_and_shift_has_the_latents_of_gated():
    corrected, gated, x = random("rescale_and_shift"), random("gated"), activations()
    with torch.no_grad():
        for name in ("W_enc", "b_enc", "W_dec", "b_dec", "r"):
            getattr(gated, name).copy_(getattr(corrected, name))
        gated.b_mag.copy_(corrected.r.exp() * corrected.b_enc + corrected.c)
    torch.testing.assert_close(corrected.encode(x), gated.encode(x))


def test_top_k_keeps_the_largest():
    dictionary, x = random("top_k"), activations()
    pi = (x - dictionary.b_dec) @ dictionary.W_enc + dictionary.b_enc
    wanted = torch.zeros_like(pi)
    for i, row in enumerate(pi):
        for j in sorted(range(11), key=lambda j: -row[j])[:3]:
            wanted[i, j] = max(row[j].item(), 0.0)
    torch.testing.assert_close(dictionary.encode(x), wanted)
    assert list(dictionary.loss_terms(x)) == ["reconstruction"]


@pytest.mark.parametrize("kind", KINDS)
def test_one_interface(kind):
    dictionary, x = random(kind), activations()
    f = dictionary.encode(x)
    assert f.shape == (40, 11)
    torch.testing.assert_close(dictionary(x), f @ dictionary.W_dec + dictionary.b_dec)
    folded = x.reshape(4, 10, 6)
    torch.testing.assert_close(dictionary.encode(folded), f.reshape(4, 10, 11))
    terms = dictionary.loss_terms(x)
    assert all(value.ndim == 0 for value in terms.values())
    more = dictionary.loss_terms(folded)
    torch.testing.assert_close(sum(more.values()), sum(terms.values()))


@pytest.mark.parametrize("kind", KINDS)
def test_decoder_columns_stay_unit_after_a_step(kind):
    dictionary, x = KINDS[kind](6, 11), activations().float()
    start = dictionary.W_dec.detach().clone()
    adam = dictionary.optimiser(1e-2)
    for _ in range(3):
        adam.zero_grad()
        sum(dictionary.loss_terms(x).values()).backward()
        adam.step()
        torch.testing.assert_close(dictionary.W_dec.norm(dim=1), torch.ones(11))
        along = (dictionary.W_dec.grad * dictionary.W_dec).sum(1).abs()
        assert dictionary.W_dec.grad.norm(dim=1).max() > 10 * along.max()
    assert not torch.allclose(dictionary.W_dec, start)


def test_directions_of_other_norms_are_not_trained():
    dictionary = ReLU(6, 11)
    dictionary.W_dec.data[4] *= 2
    with pytest.raises(MelboError, match="norms from 1 to 2, training keeps them at 1"):
        dictionary.optimiser(1e-3)


def test_dictionaries_are_drawn_by_seed():
    torch.testing.assert_close(ReLU(6, 11, 3).W_dec, ReLU(6, 11, 3).W_dec)
    assert not torch.allclose(ReLU(6, 11, 3).W_dec, ReLU(6, 11, 4).W_dec)


def shrunken(kind, sparsity=0.15, steps=300):
    """E‖x̂‖² / E⟨x, x̂⟩ after training on sums of a few of 24 planted directions of width 16.

    It is 1 if a reconstruction is neither too small nor too large on average.
    """
    g = generator(5)
    planted = random_rows(24, 16, generator(4))

    def batch(n=256):
        active = torch.rand(n, 24, generator=g) < 0.06
        return (active * (0.5 + torch.rand(n, 24, generator=g))) @ planted

    dictionary = KINDS[kind](16, 32, seed=1)
    adam = dictionary.optimiser(3e-3)
    for _ in range(steps):
        adam.zero_grad()
        sum(dictionary.loss_terms(batch(), sparsity).values()).backward()
        adam.step()
    x = batch(2000)
    y = dictionary(x).detach()
    return (y.square().sum() / (x * y).sum()).item()


def test_gated_and_the_variant_shrink_less_than_relu():
    plain = shrunken("relu")
    assert plain < 0.95
    for kind in ("gated", "stepless", "rescale_and_shift"):
        assert abs(shrunken(kind) - 1) < (1 - plain) / 2, kind


@pytest.mark.parametrize("kind", KINDS)
def test_bad_activations_are_refused_in_a_line(kind):
    dictionary, x = random(kind), activations()
    with pytest.raises(MelboError, match=r"shape \[40, 5\].* width 6"):
        dictionary.encode(x[:, :5])
    with pytest.raises(MelboError, match=r"shape \[0, 6\]"):
        dictionary.loss_terms(x[:0])
    with pytest.raises(MelboError, match=r"latents of shape \[40, 6\]: expected 11"):
        dictionary.decode(x)
    x[3, 2] = float("nan")
    with pytest.raises(MelboError, match="not finite: leave those tokens out"):
        dictionary.loss_terms(x)


@pytest.mark.parametrize("sparsity", [-1.0, float("nan"), float("inf")])
def test_a_bad_weight_is_refused(sparsity):
    with pytest.raises(MelboError, match="expected a number from 0 up"):
        ReLU(6, 11).loss_terms(activations().float(), sparsity)


def test_bad_sizes_are_refused():
    with pytest.raises(MelboError, match="0 latents for width 6"):
        Gated(6, 0)
    for k in (0, 12):
        with pytest.raises(MelboError, match=f"k is {k}: expected 1 to 11"):
            TopK(6, 11, k)
    with pytest.raises(MelboError, match="no penalty: leave it at 0"):
        TopK(6, 11, 2).loss_terms(activations().float(), 0.1)
