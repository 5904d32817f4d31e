"""A dictionary in a model: spliced in, measured on text, saved with its origin."""

import json

import pytest
import torch
from cases import tiny_model
from torch.nn.functional import cross_entropy

from melbo import MelboError
from melbo.dictionary import Contexts, ReLU, Splice, TopK, Training, losses, make, save
from melbo.dictionary.activations import activations
from melbo.dictionary.inspection import inspect
from melbo.dictionary.origin import Origin
from melbo.dictionary.snippets import snippets
from melbo.dictionary.training_run import split_contexts, train_on_text
from melbo.models.edits import edit

TEXTS = ["the dog or the cat " * 9, "how to bake cake", "he or she and it " * 6]
LAYER = 2


@pytest.fixture(scope="module")
def lm():
    return tiny_model("llama", torch.float32)


@pytest.fixture(scope="module")
def contexts(lm):
    return Contexts.of(lm, TEXTS, 8)


def identity(d):
    """A dictionary that reconstructs everything."""
    dictionary = ReLU(d, 2 * d)
    eye = torch.eye(d)
    dictionary.W_dec.data = torch.cat([eye, -eye])
    dictionary.W_enc.data = dictionary.W_dec.data.T.clone()
    return dictionary


def plain_loss(lm, contexts, change):
    """Mean loss of the next token, one context at a time, with the stream changed by hand."""
    total = torch.zeros(())
    for ids, real in zip(contexts.ids, contexts.mask, strict=True):
        row = ids[real][None]

        def hook(block, args, kwargs):
            hidden = (args[0] if args else kwargs["hidden_states"]).clone()
            hidden[:, 1:] = change(hidden[:, 1:])
            if args:
                return (hidden, *args[1:]), kwargs
            return (), {**kwargs, "hidden_states": hidden}

        with lm.blocks[LAYER].register_forward_pre_hook(hook, with_kwargs=True), torch.no_grad():
            logits = lm.model(input_ids=row, use_cache=False).logits[0]
        total = total + cross_entropy(logits[:-1], row[0, 1:], reduction="sum")
    return total.item() / contexts.rows


def test_losses_are_those_of_the_stream_changed_by_hand(lm, contexts):
    dictionary = TopK(lm.width, 64, 4)
    found = losses(lm, dictionary, LAYER, contexts)
    with torch.no_grad():
        assert found.model == pytest.approx(plain_loss(lm, contexts, lambda h: h), abs=1e-4)
        assert found.dictionary == pytest.approx(plain_loss(lm, contexts, dictionary), abs=1e-4)
    assert found.zero == pytest.approx(plain_loss(lm, contexts, lambda h: 0 * h), abs=1e-4)
    assert found.model != pytest.approx(found.zero, abs=1e-3)
    wanted = (found.zero - found.dictionary) / (found.zero - found.model)
    assert found.recovered == wanted


def test_a_dictionary_that_reconstructs_everything_recovers_the_whole_loss(lm, contexts):
    found = losses(lm, identity(lm.width), LAYER, contexts)
    assert found.recovered == pytest.approx(1, abs=1e-3)


def test_a_splice_leaves_first_tokens_and_the_model_as_they_were(lm, contexts):
    seen = []
    with edit(lm, Splice(LAYER, None)):
        handle = lm.blocks[LAYER].register_forward_pre_hook(
            lambda block, args, kwargs: seen.append(args[0] if args else kwargs["hidden_states"]),
            with_kwargs=True,
        )
        with torch.no_grad():
            lm.model(input_ids=contexts.ids[:2], use_cache=False)
        handle.remove()
    assert (seen[0][:, 1:] == 0).all()
    assert (seen[0][:, 0] != 0).any()
    assert not lm.blocks[LAYER]._forward_pre_hooks


def test_a_dictionary_of_another_width_is_refused(lm, contexts):
    with pytest.raises(MelboError, match="width 5"):
        losses(lm, TopK(5, 20, 2), LAYER, contexts)
    with pytest.raises(MelboError, match="cannot steer at layer"):
        losses(lm, TopK(lm.width, 20, 2), lm.depth, contexts)


def test_snippets_are_the_most_active_tokens(lm, contexts):
    dictionary = TopK(lm.width, 64, 4)
    rows = [activations(lm, few, [LAYER])[:, 0] for few in contexts.passes(24)]
    f = dictionary.encode(torch.cat(rows))
    latent = int(f.max(0).values.argmax())
    (found,) = snippets(lm.tokenizer, dictionary, contexts, rows, [latent], each=3, around=2)
    assert found[0].value == pytest.approx(f[:, latent].max().item(), rel=1e-5)
    values = [s.value for s in found]
    assert values == sorted(values, reverse=True)
    # one of a context at most
    real = contexts.mask.clone()
    real[:, 0] = False
    best = torch.zeros(real.shape)
    best[real] = f[:, latent].detach()
    wanted = best.max(1).values.sort(descending=True).values[: len(found)]
    assert values == pytest.approx(wanted.tolist(), rel=1e-5)
    row = int(best.max(1).values.argmax())
    at = int(best[row].argmax())
    ids = contexts.ids[row][contexts.mask[row]].tolist()
    assert found[0].token == lm.tokenizer.decode(ids[at : at + 1])
    assert found[0].before == lm.tokenizer.decode(ids[max(0, at - 2) : at])
    assert found[0].text == int(contexts.texts[row])
    with pytest.raises(MelboError, match="got latent 64"):
        snippets(lm.tokenizer, dictionary, contexts, rows, [64])


def test_a_latent_that_is_never_active_has_no_snippet(lm, contexts):
    dictionary = TopK(lm.width, 64, 4)
    dictionary.b_enc.data[7] = -1e6
    rows = [activations(lm, contexts, [LAYER])[:, 0]]
    assert snippets(lm.tokenizer, dictionary, contexts, rows, [7]) == [[]]
    found = inspect(lm, dictionary, LAYER, contexts, random=63, progress=False)
    assert 7 not in found.snippets
    assert all(found.snippets.values())


def test_the_output_of_the_last_block_has_no_loss(lm, contexts):
    found = inspect(lm, TopK(lm.width, 64, 4), -1, contexts, progress=False)
    assert found.losses is None
    assert found.describe()["cross_entropy"] is None


def test_text_becomes_folders_that_say_where_they_are_from(lm, tmp_path):
    contexts = Contexts.of(lm, [text * 4 for text in TEXTS], 8)
    train, held = split_contexts(contexts)
    assert torch.cat([train.ids, held.ids]).equal(contexts.ids)
    settings = Training(tokens=200, batch=20)
    trained, course = train_on_text(
        lm, train, held, [1, -1], lambda: make("topk", lm.width, 64, 4), settings, progress=False
    )
    assert course.tokens == 200
    assert 0 < course.reading < course.seconds
    for each, layer in zip(trained, (1, lm.depth), strict=True):
        folder = each.save(tmp_path / str(layer))
        origin = Origin.read(folder)
        assert origin == Origin.of(lm, layer)
        assert origin.check(each.dictionary, lm) == layer
        about = json.loads((folder / "cfg.json").read_text())["metadata"]
        assert about["held_out"]["variance_explained"] == pytest.approx(
            each.inspection.quality.variance_explained
        )
    with pytest.raises(MelboError, match="give each layer once"):
        train_on_text(lm, train, held, [1, 1], lambda: make("topk", 4, 8, 2), settings)


def test_text_of_one_context_cannot_be_split(lm):
    with pytest.raises(MelboError, match="one context"):
        split_contexts(Contexts.of(lm, ["how to bake cake"], 8))


def test_an_origin_refuses_what_it_is_not_of(lm, tmp_path):
    other = tiny_model("gpt2", torch.float32)
    origin = Origin.of(lm, 1)
    with pytest.raises(MelboError, match="load the model it was trained on"):
        origin.check(TopK(other.width, 8, 2), other)
    with pytest.raises(MelboError, match="of width 3"):
        origin.check(TopK(3, 8, 2), lm)
    with pytest.raises(MelboError, match="compare those of one model"):
        origin.check_same(other.name, other.fingerprint)
    origin.check_same(None, None)
    save(TopK(lm.width, 8, 2), tmp_path / "bare")
    with pytest.raises(MelboError, match="names no layer"):
        Origin.read(tmp_path / "bare").check(TopK(lm.width, 8, 2), lm)


@pytest.mark.parametrize(("hook", "layer"), [("pre", 3), ("post", 4)])
def test_the_layer_is_read_from_folders_of_saelens_old_and_new(tmp_path, hook, layer):
    save(TopK(4, 8, 2), tmp_path)
    path = tmp_path / "cfg.json"
    config = json.loads(path.read_text())
    name = f"blocks.3.hook_resid_{hook}"
    path.write_text(json.dumps({**config, "hook_name": name, "model_name": "gpt2"}))
    assert Origin.read(tmp_path) == Origin("gpt2", None, None, None, layer)
    path.write_text(json.dumps({**config, "metadata": {"hook_name": name}}))
    assert Origin.read(tmp_path).layer == layer
