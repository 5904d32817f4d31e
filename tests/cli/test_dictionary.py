"""The commands for sparse dictionaries."""

import json

import pytest
from command_line import strict

from melbo.dictionary import TopK, load, save

SIZES = ("--latents", 48, "--k", 4, "--tokens", 600, "--batch", 50, "--context", 16)
PNG = b"\x89PNG"


@pytest.fixture(scope="session")
def texts(tmp_path_factory):
    folder = tmp_path_factory.mktemp("texts")
    path = folder / "text.txt"
    path.write_text("the dog or the cat and how to bake cake " * 60, encoding="utf-8")
    return path


@pytest.fixture
def trained(melbo, texts, tmp_path):
    out = tmp_path / "trained"
    call = ("dictionary", "train", "tiny", "--text", texts, *SIZES)
    ended = melbo(*call, "--layers", 1, "--out", out)
    assert ended.code == 0, ended.err
    assert "variance explained" in ended.out
    assert f"saved to {out}" in ended.out
    return out


def test_a_dictionary_is_trained_inspected_and_compared(melbo, texts, trained, tmp_path):
    assert load(trained).W_dec.shape == (48, 32)
    call = ("dictionary", "inspect", trained, "--text", texts, "--context", 16)
    ended = melbo(*call, "--latent", 3, "--picture", tmp_path / "p.png")
    assert ended.code == 0, ended.err
    assert ended.out.startswith("TopK, 48 latents of width 32, of tiny, layer 1")
    for said in ("cross-entropy recovered", "Welch floor", "\nlatent 3"):
        assert said in ended.out
    assert (tmp_path / "p.png").read_bytes().startswith(PNG)
    found = strict(melbo(*call, "--json").out)
    assert found["origin"]["layer"] == 1
    assert found["text"]["l0"] == pytest.approx(4, abs=0.5)
    assert len(found["text"]["snippets"]) == 5
    assert set(found["geometry"]["cosines"]["directions"]) == {"1", "10"}
    ended = melbo("dictionary", "compare", "run", trained, "--picture", tmp_path / "q.png")
    assert ended.code == 0, ended.err
    assert "V (layer " in ended.out
    assert "rotated: " in ended.out
    assert (tmp_path / "q.png").read_bytes().startswith(PNG)
    found = strict(melbo("dictionary", "compare", "run", trained, "--json").out)
    assert len(found["V"]["cosine"]) == len(found["U"]["latent"]) == 4
    assert found["layers"]["dictionary"] == 1


def test_several_layers_have_a_folder_each(melbo, texts, tmp_path):
    out = tmp_path / "several"
    more = ("--architecture", "gated", "--sparsity", 1, "--layers", "1,-1", "--json")
    call = ("dictionary", "train", "tiny", "--text", texts, *SIZES[:2], *SIZES[4:], "--out", out)
    ended = melbo(*call, *more)
    assert ended.code == 0, ended.err
    found = strict(ended.out)
    assert [each["folder"] for each in found["dictionaries"]] == [
        str(out / "layer-1"),
        str(out / "layer-4"),
    ]
    assert found["dictionaries"][1]["held_out"]["cross_entropy"] is None
    assert found["course"]["tokens"] == 600
    assert type(load(out / "layer-1")).__name__ == "Gated"


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (("--k", 49), "k is 49: expected 1 to 48"),
        (("--architecture", "relu"), "relu has no k"),
        (("--sparsity", 1), "topk takes --k"),
        (("--layers", "one"), "expected whole numbers"),
        (("--layers", "9"), "layer is 9"),
        (("--layers", "1,1"), "give each layer once"),
        (("--tokens", 10), "one batch or more"),
        (("--context", 500), "expected 2 to 64"),
        (("--batch", 5000, "--tokens", 5000), "give more text"),
        (("--text", "empty.txt"), "empty.txt is empty"),
        (("--text", "nowhere.txt"), "cannot read nowhere.txt"),
        (("--text", "latin.txt"), "not UTF-8"),
    ],
)
def test_bad_input_to_train_is_one_line(refuses, texts, more, said):
    kind = ("--sparsity", 1) if "relu" in more else ()
    call = ("dictionary", "train", "tiny", "--text", texts, *SIZES, "--out", "new")
    assert said in refuses(*call, *kind, *more)


def test_training_needs_text_and_a_model_that_is_whole(refuses, texts):
    assert "got no text" in refuses("dictionary", "train", "tiny", "--out", "new")
    call = ("dictionary", "train", "infinite", "--text", texts, *SIZES, "--out", "new")
    assert "not finite" in refuses(*call, "--layers", 3)


def test_a_dictionary_is_replaced_only_by_force(melbo, refuses, texts, trained):
    call = ("dictionary", "train", "tiny", "--text", texts, *SIZES, "--out", trained)
    assert "already holds a dictionary" in refuses(*call)
    assert melbo(*call, "--force").code == 0


def test_dictionaries_of_others_are_refused(melbo, refuses, texts, trained, tmp_path):
    inspect = ("dictionary", "inspect")
    text = ("--text", texts)
    assert "trained on" in refuses(*inspect, trained, *text, "--model", "other")
    assert "no dictionary in" in refuses(*inspect, "run")
    save(TopK(5, 20, 2), tmp_path / "narrow")
    assert "names no model" in refuses(*inspect, tmp_path / "narrow", *text)
    assert "width 5" in refuses(*inspect, tmp_path / "narrow", *text, "--model", "tiny")
    assert "got latent 48" in refuses(*inspect, trained, *text, "--context", 16, "--latent", 48)
    assert "widths 32 and 5" in refuses("dictionary", "compare", "run", tmp_path / "narrow")
    path = trained / "cfg.json"
    config = json.loads(path.read_text())
    config["metadata"]["model_sha256"] = "0" * 64
    path.write_text(json.dumps(config))
    assert "compare those of one model" in refuses("dictionary", "compare", "run", trained)


def test_a_dictionary_without_text_or_model_still_has_a_geometry(melbo, tmp_path):
    save(TopK(8, 20, 2), tmp_path / "bare")
    ended = melbo("dictionary", "inspect", tmp_path / "bare")
    assert ended.code == 0, ended.err
    assert "of an unnamed model" in ended.out
