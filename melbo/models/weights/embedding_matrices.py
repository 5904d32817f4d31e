"""The embeddings of tokens and positions, found by what enters the first block."""

from dataclasses import replace

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from melbo.errors import MelboError
from melbo.models.language_model import LanguageModel
from melbo.models.weights.block_at_work import few_tokens, watch
from melbo.models.weights.output_matrices import OutputMatrix, a_matrix, gain_between
from melbo.models.weights.storage import in_memory


def embeddings(lm: LanguageModel) -> list[OutputMatrix]:
    """Find the embeddings of tokens and positions, and a matrix that widens them to the stream.

    Where a norm follows, its gain is found as that of output matrices is, and the norm's own bias
    comes last, as a matrix without one.

    Args:
        lm: The model.

    Raises:
        MelboError: A module that is neither stands between them and the first block, or the model
            reads more than tokens.
    """
    _require_text_only(lm)
    ids, mask = few_tokens()
    inside = set(lm.blocks.modules())
    with watch(lm.model, lm.model, torch.Size((1, ids.shape[1], lm.width))) as (passed, _):
        lm.capture(ids, mask, 0, 1)
    paths = {module: name for name, module in lm.model.named_modules()}
    found: list[OutputMatrix] = []
    for module, (entered, out) in passed.items():
        if module in inside:
            continue
        if isinstance(module, (nn.Embedding, nn.Linear, Conv1D)):
            # what a matrix reads is not the stream
            read = {id(w.summand) for w in found if torch.equal(passed[w.summand][1], entered)}
            if not isinstance(module, nn.Embedding):
                found = [w for w in found if id(w.summand) not in read]
            axis = 0 if isinstance(module, nn.Linear) else 1
            found.append(a_matrix(-1, paths[module], module, "weight", axis, module))
        elif not torch.equal(entered, out) and not list(module.children()):
            found = _behind(lm, paths[module], entered, out, found)
    return found


def _require_text_only(lm: LanguageModel) -> None:
    """Refuse a model in whose stream pictures or sounds stand in the place of embeddings.

    Raises:
        MelboError: The configuration has a part besides that of the decoder.
    """
    parts = getattr(lm.model.config, "sub_configs", None) or {}
    held = {name: getattr(lm.model.config, name, None) for name in parts}
    others = [name for name, part in held.items() if part not in (None, lm.config)]
    if lm.model.config is not lm.config and others:
        raise MelboError(
            f"{lm.name} reads more than tokens ({', '.join(sorted(others))}), and what that puts "
            "into the stream goes past the embeddings: leave them as they are (embedding=False)"
        )


def _behind(
    lm: LanguageModel, path: str, entered: Tensor, out: Tensor, found: list[OutputMatrix]
) -> list[OutputMatrix]:
    """Matrices whose sum goes through a norm, and the norm's bias.

    Raises:
        MelboError: The module is no norm.
    """
    norm = lm.model.get_submodule(path)
    gain, centred, bias = _norm(lm, path, entered, out)
    if gain is None:
        raise MelboError(
            f"{path} of {lm.name} ({type(norm).__name__}) stands between the embeddings and the "
            "first block and is no norm: leave the embeddings as they are (embedding=False)"
        )
    behind = [replace(w, gain=gain, centred=centred, summand=norm) for w in found]
    if bias is not None:
        behind.append(OutputMatrix(-1, f"{path}.bias", norm, bias, 0, None, norm))
    return behind


def _norm(
    lm: LanguageModel, path: str, entered: Tensor, out: Tensor
) -> tuple[Tensor | None, bool, Tensor | None]:
    """Gain of a norm, whether it subtracts the mean, and its bias."""
    norm = lm.model.get_submodule(path)
    bias = getattr(norm, "bias", None)
    bias = bias if isinstance(bias, Tensor) and bias.shape == out.shape[-1:] else None
    precise = in_memory(lm.model, path).double()
    device = next((p.device for p in precise.parameters()), entered.device)
    entered = entered.to(device)
    with torch.no_grad():
        scaled = precise(entered).double()
    if bias is not None:
        scaled = scaled - precise.bias
    for centred, x in ((False, entered), (True, entered - entered.mean(-1, keepdim=True))):
        gain = gain_between(x, scaled)
        if gain is not None:
            return gain, centred, bias
    return None, False, None
