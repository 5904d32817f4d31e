import pytest
import torch
from cases import tiny_model
from transformers import DynamicCache

from melbo.models.decoding.kv_cache import give_room


def states(rows, tokens, seed):
    return torch.randn(2, rows, 3, tokens, 4, generator=torch.Generator().manual_seed(seed))


def filled(rows=5, tokens=7):
    cache = DynamicCache()
    for layer in range(2):
        cache.update(*states(rows, tokens, layer), layer)
    return cache


def test_grows_as_the_usual_cache_does_through_selections_and_crops():
    usual, roomy = filled(), give_room(filled())
    rows = 5
    for step in range(80):
        for layer in range(2):
            new = states(rows, 1 + (step == 3), 100 * step + layer)
            ours, theirs = roomy.update(*new, layer), usual.update(*new, layer)
            assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))
        assert roomy.get_seq_length() == usual.get_seq_length()
        for cache in (usual, roomy):
            if step == 20:
                cache.batch_select_indices(torch.tensor([4, 0, 2]))
            if step == 30:
                cache.batch_repeat_interleave(2)
            if step == 40:
                cache.crop(-5)
        rows = {20: 3, 30: 6}.get(step, rows)


def test_a_token_is_written_in_place_while_there_is_room():
    roomy = give_room(filled())
    places = [roomy.update(*states(5, 1, step), 0)[0].data_ptr() for step in range(70)]
    assert 2 <= len(set(places)) <= 3


def test_is_given_once_and_to_plain_layers_only():
    roomy = give_room(filled())
    layers = list(roomy.layers)
    assert give_room(roomy).layers == layers
    assert give_room(None) is None
    windowed = tiny_model("gemma3")
    with torch.no_grad():
        cache = windowed.model(torch.arange(3, 12)[None], use_cache=True).past_key_values
    kinds = [type(layer).__name__ for layer in cache.layers]
    assert "DynamicSlidingWindowLayer" in kinds
    after = [type(layer).__name__ for layer in give_room(cache).layers]
    others = [i for i, kind in enumerate(kinds) if kind != "DynamicLayer"]
    assert [after[i] for i in others] == [kinds[i] for i in others]
    assert "DynamicLayer" not in after


@pytest.mark.parametrize("rows", [1, 4])
def test_a_crop_that_is_grown_again_does_not_write_over_what_was_handed_out(rows):
    roomy = give_room(filled(rows))
    before, _ = roomy.update(*states(rows, 2, 9), 0)
    kept = before.clone()
    roomy.layers[0].crop(-2)
    roomy.update(*states(rows, 2, 10), 0)
    assert torch.equal(before, kept)
