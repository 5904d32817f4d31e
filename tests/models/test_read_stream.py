"""The stream at several layers in one pass, against the model's own hidden states."""

import pytest
import torch
from cases import padded, tiny_model

from melbo import MelboError
from melbo.models.read_stream import read_stream


def counted(lm):
    """Hooks that count calls of each block."""
    calls = [0] * lm.depth
    handles = []
    for i, block in enumerate(lm.blocks):

        def hook(*_, i=i):
            calls[i] += 1

        handles.append(block.register_forward_pre_hook(hook))
    return calls, handles


@pytest.mark.parametrize("name", ["llama", "gpt2", "gemma2"])
def test_layers_are_those_of_the_model(name):
    lm = tiny_model(name)
    ids, mask = padded([7, 5, 7])
    with torch.no_grad():
        states = lm.model(
            input_ids=ids, attention_mask=mask.long(), output_hidden_states=True, use_cache=False
        ).hidden_states
    found = read_stream(lm, ids, mask, [2, 0, 1])
    for layer, stream in zip([2, 0, 1], found, strict=True):
        torch.testing.assert_close(stream[mask], states[layer][mask])


def test_the_last_layer_has_no_final_norm():
    lm = tiny_model("llama")
    ids, mask = padded([6, 6])
    (found,) = read_stream(lm, ids, mask, [-1])
    torch.testing.assert_close(found, lm.capture(ids, mask, lm.depth - 1, lm.depth).output)


def test_blocks_behind_the_last_layer_do_not_run():
    lm = tiny_model("llama")
    calls, handles = counted(lm)
    ids, mask = padded([6, 6])
    read_stream(lm, ids, mask, [0, 2])
    for handle in handles:
        handle.remove()
    assert calls == [1, 1] + [0] * (lm.depth - 2)


def test_a_stream_that_is_not_finite_is_refused_in_one_line():
    lm = tiny_model("llama")
    ids, mask = padded([6, 6])
    lm.model.get_input_embeddings().weight.data[ids[0, 2], 1] = float("nan")
    with pytest.raises(MelboError, match="not finite"):
        read_stream(lm, ids, mask, [1])


def test_layers_that_do_not_exist_are_refused():
    lm = tiny_model("llama")
    with pytest.raises(MelboError, match="layer is 9"):
        read_stream(lm, *padded([4]), [9])
