import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.nn.functional import relu

from melbo import MelboError
from melbo.dictionary import Gated, ReLU, RescaleAndShift, Stepless, TopK, load, save
from melbo.dictionary.base import Dictionary

D, M, K = 6, 11, 3
KINDS = {
    "relu": (lambda: ReLU(D, M), "standard", ReLU),
    "top_k": (lambda: TopK(D, M, K), "topk", TopK),
    "gated": (lambda: Gated(D, M), "gated", Gated),
    "rescale_and_shift": (lambda: RescaleAndShift(D, M), "gated", Gated),
    "stepless": (lambda: Stepless(D, M), "standard", ReLU),
}


def random(kind) -> Dictionary:
    dictionary = KINDS[kind][0]()
    g = torch.Generator().manual_seed(1)
    for p in dictionary.parameters():
        p.data = p.data + 0.3 * torch.randn(p.shape, generator=g)
    return dictionary


def activations():
    return torch.randn(30, D, generator=torch.Generator().manual_seed(2))


def as_saelens(folder, x):
    """Latents and reconstruction, by the equations in SAELens' documentation."""
    config = json.loads((folder / "cfg.json").read_text())
    w = load_file(folder / "sae_weights.safetensors")
    inside = (x - w["b_dec"] * config["apply_b_dec_to_input"]) @ w["W_enc"]
    norms = torch.ones(M)
    if config["architecture"] == "gated":
        gate = (inside + w["b_gate"] > 0).float()
        f = gate * relu(inside * w["r_mag"].exp() + w["b_mag"])
    else:
        f = relu(inside + w["b_enc"])
    if config["architecture"] == "topk":
        if config["rescale_acts_by_decoder_norm"]:
            norms = w["W_dec"].norm(dim=1)
        f = f * norms
        least = f.sort(1, descending=True).values[:, config["k"] - 1 : config["k"]]
        f = torch.where(f >= least, f, 0.0)
    return f, (f / norms) @ w["W_dec"] + w["b_dec"]


def change(folder, weights=None, **config):
    """Write other settings, and other tensors (None takes one away), into a folder."""
    path = folder / "cfg.json"
    merged = {**json.loads(path.read_text()), **config}
    path.write_text(json.dumps({k: v for k, v in merged.items() if v != "out"}))
    tensors = {**load_file(folder / "sae_weights.safetensors"), **(weights or {})}
    save_file(
        {k: v for k, v in tensors.items() if v is not None}, folder / "sae_weights.safetensors"
    )


@pytest.mark.parametrize("kind", KINDS)
def test_a_saved_dictionary_has_equal_latents(tmp_path, kind):
    _, architecture, read_as = KINDS[kind]
    dictionary, x = random(kind), activations()
    folder = save(dictionary, tmp_path / "new" / "folder", {"model_name": "gpt2"})
    config = json.loads((folder / "cfg.json").read_text())
    assert (config["architecture"], config["d_in"], config["d_sae"]) == (architecture, D, M)
    assert config["metadata"]["model_name"] == "gpt2"
    again = load(folder)
    assert type(again) is read_as
    for f, y in ((again.encode(x), again(x)), as_saelens(folder, x)):
        torch.testing.assert_close(f, dictionary.encode(x))
        torch.testing.assert_close(y, dictionary(x))
    assert all(p.requires_grad for p in again.parameters())


@pytest.mark.parametrize("kind", ["relu", "gated", "top_k"])
@pytest.mark.parametrize("weighted", [False, True])
def test_settings_of_saelens_are_folded_in(tmp_path, kind, weighted):
    x = activations()
    save(random(kind), tmp_path)
    plain = load(tmp_path).encode(x)
    change(tmp_path, apply_b_dec_to_input=False, rescale_acts_by_decoder_norm=weighted)
    found = load(tmp_path)
    f, y = as_saelens(tmp_path, x)
    torch.testing.assert_close(found.encode(x), f)
    torch.testing.assert_close(found(x), y)
    assert not torch.allclose(plain, f)


def test_settings_from_before_version_6_are_read(tmp_path):
    x, dictionary = activations(), random("top_k")
    save(dictionary, tmp_path)
    change(
        tmp_path,
        architecture="standard",
        activation_fn_str="topk",
        activation_fn_kwargs={"k": K},
        k="out",
        metadata="out",
    )
    torch.testing.assert_close(load(tmp_path).encode(x), dictionary.encode(x))
    save(random("relu"), tmp_path, force=True)
    change(tmp_path, architecture="out", metadata="out", apply_b_dec_to_input="out")
    torch.testing.assert_close(load(tmp_path).encode(x), random("relu").encode(x))


def test_weights_in_half_precision_are_read_in_float32(tmp_path):
    save(random("gated").bfloat16(), tmp_path)
    assert json.loads((tmp_path / "cfg.json").read_text())["dtype"] == "bfloat16"
    found = load(tmp_path)
    assert all(p.dtype == torch.float32 for p in found.parameters())
    torch.testing.assert_close(
        found(activations()), random("gated").bfloat16().float()(activations())
    )


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"architecture": "jumprelu"}, "architecture 'jumprelu': expected one of standard, topk"),
        ({"activation_fn": "tanh-relu"}, "activation function 'tanh-relu'"),
        ({"normalize_activations": "layer_norm"}, "normalize_activations 'layer_norm'"),
        ({"architecture": "topk"}, "k None: expected 1 or more"),
        ({"architecture": "topk", "k": 40}, "k is 40: expected 1 to 11"),
        ({"d_in": "out"}, "d_in None: expected a size"),
        ({"d_sae": "many"}, "d_sae 'many': expected a size"),
        ({"d_sae": 12}, r"W_enc of shape \[6, 11\]: expected \[6, 12\]"),
        ({"architecture": "gated"}, "lacks b_gate, b_mag, r_mag"),
    ],
)
def test_settings_that_do_not_fit_are_refused_in_a_line(tmp_path, config, message):
    save(random("relu"), tmp_path)
    change(tmp_path, **config)
    with pytest.raises(MelboError, match=message) as caught:
        load(tmp_path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ({"b_enc": None}, "lacks b_enc: expected W_dec, W_enc, b_dec, b_enc"),
        ({"scaling_factor": torch.ones(M)}, "also has scaling_factor"),
        ({"b_dec": torch.full((D,), float("nan"))}, "values in b_dec that are not finite"),
        ({"b_dec": torch.ones(D + 1)}, r"b_dec of shape \[7\]: expected \[6\]"),
    ],
)
def test_weights_that_do_not_fit_are_refused_in_a_line(tmp_path, weights, message):
    save(random("relu"), tmp_path)
    change(tmp_path, weights)
    with pytest.raises(MelboError, match=message) as caught:
        load(tmp_path)
    assert "\n" not in str(caught.value)


def test_files_that_are_missing_or_truncated_are_refused_in_a_line(tmp_path):
    with pytest.raises(MelboError, match=r"no dictionary in .*cfg\.json: No such file"):
        load(tmp_path)
    save(random("relu"), tmp_path)
    weights, config = tmp_path / "sae_weights.safetensors", tmp_path / "cfg.json"
    whole = weights.read_bytes()
    weights.write_bytes(whole[:-8])
    with pytest.raises(MelboError, match=r"sae_weights\.safetensors cannot be read"):
        load(tmp_path)
    weights.unlink()
    with pytest.raises(MelboError, match=r"sae_weights\.safetensors cannot be read"):
        load(tmp_path)
    for text, message in (('{"d_in": 6', "truncated or not JSON"), ("[]", "no object of settings")):
        config.write_text(text)
        with pytest.raises(MelboError, match=message):
            load(tmp_path)


def test_what_cannot_be_written_is_refused_and_writes_nothing(tmp_path):
    stepless = random("stepless")
    stepless.t.data[4] = -0.5
    with pytest.raises(MelboError, match="1 of 11 factors t are negative"):
        save(stepless, tmp_path)
    broken = random("relu")
    broken.b_enc.data[2] = float("inf")
    with pytest.raises(MelboError, match="the dictionary has values in b_enc that are not finite"):
        save(broken, tmp_path)

    class Other(ReLU):
        pass

    with pytest.raises(MelboError, match="a Other has no form in SAELens' format"):
        save(Other(D, M), tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_dictionary_is_replaced_only_by_force(tmp_path):
    save(random("relu"), tmp_path)
    with pytest.raises(MelboError, match="already holds a dictionary"):
        save(random("gated"), tmp_path)
    save(random("gated"), tmp_path, force=True)
    assert type(load(tmp_path)) is Gated
