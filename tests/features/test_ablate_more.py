"""Embeddings behind norms, experts stored either way, and edits that do not hold."""

from functools import partial

import pytest
import torch
from cases import TINY, build, tiny_model, tiny_tokenizer
from toys import directions
from transformers import (
    ModernBertDecoderConfig,
    NanoChatConfig,
    OPTConfig,
    XGLMConfig,
)

from melbo import LanguageModel, MelboError, ablate
from melbo.models.weights.embedding_matrices import embeddings
from melbo.models.weights.output_matrices import output_matrices
from research.tiny.experts import EXPERTS

_IDS = {"vocab_size": 96, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
_SHAPE = _IDS | {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
}
_GROUPED = _SHAPE | {"num_key_value_heads": 2}


def made(config, shape, **more):
    return partial(lambda: build(config(**shape, **more)))


ENTERING = {
    "bloom": TINY["bloom"],
    "nanochat": made(NanoChatConfig, _GROUPED),
    "modernbert": made(ModernBertDecoderConfig, _SHAPE),
    "opt_projected": made(
        OPTConfig,
        {k: v for k, v in _SHAPE.items() if k != "intermediate_size"},
        ffn_dim=48,
        word_embed_proj_dim=16,
    ),
    "gemma": TINY["gemma"],
    "granite": TINY["granite"],
}
IDS = torch.tensor([[5, 9, 17, 23, 31, 40], [2, 11, 60, 4, 8, 77]])


@torch.no_grad()
def stream(lm):
    """Stream entering each block and leaving the last ``[depth + 1, n, T, d]``, by plain hooks."""
    found = []
    handles = [
        block.register_forward_pre_hook(
            lambda b, args, kwargs: found.append(args[0] if args else kwargs["hidden_states"]),
            with_kwargs=True,
        )
        for block in lm.blocks
    ]
    handles.append(
        lm.blocks[-1].register_forward_hook(
            lambda b, args, out: found.append(out[0] if isinstance(out, tuple) else out)
        )
    )
    lm.model(IDS)
    for handle in handles:
        handle.remove()
    return torch.stack(found).double()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", ENTERING)
def test_nothing_along_the_directions_is_left_in_the_stream(name, dtype):
    lm = LanguageModel(ENTERING[name]().to(dtype), tiny_tokenizer(), name=name)
    V = directions(2, lm.width)
    before = {k: t.clone() for k, t in lm.model.state_dict().items()}
    along = (stream(lm) @ V.T).abs().max()
    with ablate(lm, V, embedding=True):
        left = (stream(lm) @ V.T).abs().max()
    assert left < (1e-5 if dtype == torch.float32 else 3e-2) * along
    assert all(torch.equal(before[k], t) for k, t in lm.model.state_dict().items())


def test_what_enters_is_known_by_what_it_goes_through():
    found = {w.name: (w.gain is not None, w.centred) for w in embeddings(tiny_model("bloom"))}
    assert found == {
        "transformer.word_embeddings.weight": (True, True),
        "transformer.word_embeddings_layernorm.bias": (False, False),
    }


def test_positions_that_no_table_holds_are_refused():
    config = XGLMConfig(
        **_IDS, d_model=32, ffn_dim=48, num_layers=3, attention_heads=4, max_position_embeddings=64
    )
    lm = LanguageModel(build(config), tiny_tokenizer())
    before = stream(lm)
    says = "what enters the first block .* is still along"
    with pytest.raises(MelboError, match=says), ablate(lm, directions(1, lm.width), embedding=True):
        pass
    assert torch.equal(stream(lm), before)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", EXPERTS)
def test_experts_are_edited_along_the_axis_that_the_stream_has(name, dtype):
    lm = LanguageModel(EXPERTS[name]().to(dtype), tiny_tokenizer(), name=name)
    V = directions(2, lm.width)
    along = (stream(lm).diff(dim=0) @ V.T).abs().max()
    with ablate(lm, V):
        left = (stream(lm).diff(dim=0) @ V.T).abs().max()
        # also in experts that no token chose
        for w in output_matrices(lm):
            assert (w.weight.double().movedim(w.axis, -1) @ V.T).abs().max() < 1e-2
    assert left < (1e-5 if dtype == torch.float32 else 3e-2) * along


def test_a_matrix_that_is_read_from_elsewhere_is_found_out_and_all_is_put_back():
    lm = tiny_model("llama", torch.float32)
    copy = lm.blocks[2].mlp.down_proj.weight.clone()
    lm.blocks[2].mlp.down_proj.forward = lambda x: x @ copy.T  # the weight is not used any more
    before = {k: t.clone() for k, t in lm.model.state_dict().items()}
    says = "block 2 of llama still writes along"
    with pytest.raises(MelboError, match=says) as err, ablate(lm, directions(1, lm.width)):
        pass
    assert "\n" not in str(err.value)
    assert all(torch.equal(before[k], t) for k, t in lm.model.state_dict().items())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_model_that_is_ablated_already_may_be_ablated_again(dtype):
    lm = tiny_model("llama", dtype)
    v = directions(1, lm.width)
    with ablate(lm, v):
        once = stream(lm)
        with ablate(lm, v):
            assert torch.allclose(stream(lm), once, atol=1e-5 if dtype == torch.float32 else 0.1)
