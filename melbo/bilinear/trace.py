"""A contrast vector traced through the MLPs of a model: real responses beside those of weights."""

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from melbo.bilinear.gate import GatedMLP
from melbo.bilinear.gated import gated_mlp, gated_module
from melbo.errors import MelboError
from melbo.models.edits import Add, edit
from melbo.models.language_model import LanguageModel

#: Multiples of the contrast vector that are traced where none are given.
ALPHAS = (0.25, 0.5, 1.0, 2.0, 4.0)
#: Predictions of an MLP's response: by its weights without the non-linearity of the gate, and by
#: expansions at the activation.
PREDICTIONS = ("weights", "first order", "tangent gate", "second order")


class Agreement(NamedTuple):
    """Agreement of a predicted response p with the real one r.

    Attributes:
        cosine: Cosine of p and r.
        error: ‖p − r‖ / ‖r‖.
    """

    cosine: float
    error: float


@dataclass(frozen=True)
class Response:
    """Response of one MLP to one change of its input.

    Attributes:
        alpha: Multiple of the contrast vector.
        size: ‖r‖ / ‖y(x)‖, for the response r = y(x + δ) − y(x).
        cross: Share of the cross term in the response of the weights; that of self is 1 − cross.
        agreement: Agreement of each of `PREDICTIONS` with r.
        units: Hidden units with the largest shares in r, and these shares.
        carriers: Least number of hidden units whose shares sum to half of r or more.
        bent: ‖δ − δ₀‖ / ‖δ₀‖, δ₀ being the change at the smallest |α|, in proportion to α. It is
            zero where the input moves along a line.
    """

    alpha: float
    size: float
    cross: float
    agreement: dict[str, Agreement]
    units: tuple[tuple[int, float], ...]
    carriers: int
    bent: float

    def describe(self) -> dict[str, Any]:
        """The same, JSON-able."""
        return {
            "alpha": self.alpha,
            "size": self.size,
            "cross": self.cross,
            "self": 1 - self.cross,
            "agreement": {name: fit._asdict() for name, fit in self.agreement.items()},
            "units": [{"unit": unit, "share": share} for unit, share in self.units],
            "carriers": self.carriers,
            "bent": self.bent,
        }


@dataclass(frozen=True)
class Trace:
    """Responses of the MLPs of a model to a contrast vector.

    Attributes:
        layer: Layer at which the vector is taken and added.
        norm: Norm of the vector.
        stream: Norm of what it is added to.
        responses: Responses by block, in the order of the multiples.
    """

    layer: int
    norm: float
    stream: float
    responses: dict[int, tuple[Response, ...]]

    def describe(self) -> dict[str, Any]:
        """The same, JSON-able."""
        blocks = [
            {"block": block, "responses": [each.describe() for each in responses]}
            for block, responses in self.responses.items()
        ]
        return {"layer": self.layer, "norm": self.norm, "stream": self.stream, "blocks": blocks}


def trace(
    lm: LanguageModel,
    positive: Sequence[int],
    negative: Sequence[int],
    layer: int,
    alphas: Sequence[float] = ALPHAS,
) -> Trace:
    """Trace a contrast vector through the gated MLPs of a model.

    The vector is the difference of the two streams that enter block ``layer``, at the last token of
    each text. Multiples of it are added there, on the negative text. At every block from there on,
    what its MLP reads and how it responds is that of the whole model, norms and attention included.

    Args:
        lm: The model.
        positive: Token ids of the text to move towards.
        negative: Token ids of the text that is steered.
        layer: Layer of the vector (``hidden_states`` index, negative from the end).
        alphas: Multiples of the vector.

    Raises:
        MelboError: No block reads the layer, the texts do not differ there, a multiple is zero or
            not finite or comes twice, a block has no gated MLP, or an MLP does not respond.
    """
    check_alphas(alphas)
    modules = {block: gated_module(lm, block) for block in range(lm.layer(layer), lm.depth)}
    ends = [lm.activations(tokens, layer)[-1].float() for tokens in (positive, negative)]
    vector = ends[0] - ends[1]
    if not vector.norm() > 1e-6 * ends[1].norm():
        raise MelboError(
            f"the texts have the same last token and stream at layer {lm.layer(layer)}, so there "
            "is no contrast vector: give texts that end differently, or a later layer"
        )
    inputs = _inputs(lm, modules, negative, lm.layer(layer), _multiples(vector, alphas))
    responses = {}
    for block, (x, changes) in inputs.items():
        try:
            responses[block] = respond(gated_mlp(modules[block]), x, changes, alphas)
        except MelboError as err:
            raise MelboError(f"block {block} of {lm.name}: {err}") from err
    return Trace(lm.layer(layer), vector.norm().item(), ends[1].norm().item(), responses)


def check_alphas(alphas: Sequence[float]) -> None:
    """Refuse multiples of a vector that no response can be traced for.

    Raises:
        MelboError: There is none, or one is zero or not finite or comes twice.
    """
    finite = torch.tensor([*alphas], dtype=torch.float64).isfinite().all()
    if not alphas or 0 in alphas or not finite or len({*alphas}) < len(alphas):
        given = ", ".join(f"{alpha:g}" for alpha in alphas) or "none"
        raise MelboError(f"got the scales {given}: expected finite numbers other than 0, each once")


def respond(
    mlp: GatedMLP, x: Tensor, changes: Tensor, alphas: Sequence[float]
) -> tuple[Response, ...]:
    """Real responses of an MLP to changes of its input, beside their predictions.

    Args:
        mlp: The MLP.
        x: Its input without steering ``[d]``.
        changes: Changes δ of its input, one for each multiple ``[k, d]``.
        alphas: The multiples.

    Raises:
        MelboError: A change or the response to it is not finite, or the MLP does not respond.
    """
    weights, base = mlp.weights, x[None].to(mlp.weights.D)
    changes = changes.to(base)
    if not (changes.isfinite().all() and mlp(base + changes).square().sum().isfinite()):
        raise MelboError("the MLP's response is not finite at the largest scale: lower it")
    hidden = mlp.hidden(base + changes) - mlp.hidden(base)
    real = hidden @ weights.D.T
    if not (real.norm(dim=-1) > 0).all():
        raise MelboError("the MLP does not respond at the smallest scale: raise it")
    shares = hidden * (real @ weights.D) / real.square().sum(-1, keepdim=True)
    predicted = predictions(mlp, base, changes)
    own = predicted["weights"]
    cross = (weights.split(base, changes).cross * own).sum(-1) / own.square().sum(-1)
    sizes = real.norm(dim=-1) / mlp(base).norm()
    bends = _bends(changes, alphas)
    return tuple(
        Response(
            alpha=alpha,
            size=sizes[k].item(),
            cross=cross[k].item(),
            agreement={name: agreement(each[k], real[k]) for name, each in predicted.items()},
            units=_largest(shares[k]),
            carriers=carriers(shares[k]),
            bent=bends[k],
        )
        for k, alpha in enumerate(alphas)
    )


def predictions(mlp: GatedMLP, x: Tensor, changes: Tensor) -> dict[str, Tensor]:
    """Predicted responses to changes δ of an MLP's input, rows ``[k, d_out]`` by `PREDICTIONS`.

    Args:
        mlp: The MLP.
        x: Its inputs without steering ``[k or 1, d]``.
        changes: Changes of its inputs ``[k, d]``.
    """
    split, taylor = mlp.weights.split(x, changes), mlp.taylor(x, changes)
    tangent = mlp.tangent(x, changes)
    found = (
        split.cross + split.self,
        taylor.cross,
        tangent.cross + tangent.self,
        taylor.cross + taylor.self,
    )
    return dict(zip(PREDICTIONS, found, strict=True))


def agreement(predicted: Tensor, real: Tensor) -> Agreement:
    """Cosine and relative error of a prediction, two vectors ``[d]``."""
    cosine = torch.nn.functional.cosine_similarity(predicted, real, dim=0)
    return Agreement(cosine.item(), ((predicted - real).norm() / real.norm()).item())


def carriers(shares: Tensor) -> int:
    """Least number of hidden units whose shares ``[h]`` sum to a half or more."""
    total = shares.sort(descending=True).values.cumsum(0)
    return int((total >= 0.5).int().argmax()) + 1


def _multiples(vector: Tensor, alphas: Sequence[float]) -> Tensor:
    """Zero, and each multiple of a vector ``[1 + k, d]``."""
    return torch.tensor([0.0, *alphas], device=vector.device)[:, None] * vector


def _inputs(
    lm: LanguageModel,
    modules: dict[int, nn.Module],
    tokens: Sequence[int],
    layer: int,
    vectors: Tensor,
) -> dict[int, tuple[Tensor, Tensor]]:
    """Inputs of MLPs at the last token: without steering ``[d]``, and their changes ``[k, d]``."""
    read: dict[int, Tensor] = {}

    def noting(block: int) -> Any:
        def note(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            entered: Tensor = args[0] if args else next(iter(kwargs.values()))
            read[block] = entered[:, -1].detach().float()

        return note

    ids = torch.tensor([tuple(tokens)] * len(vectors), device=lm.device)
    with ExitStack() as stack:
        stack.enter_context(torch.no_grad())
        stack.enter_context(edit(lm, Add(layer, vectors, last=1), prompt=ids.shape[1]))
        for block, module in modules.items():
            hook = module.register_forward_pre_hook(noting(block), with_kwargs=True)
            stack.callback(hook.remove)
        lm.model(input_ids=ids, attention_mask=torch.ones_like(ids))
    return {block: (rows[0], rows[1:] - rows[0]) for block, rows in read.items()}


def _largest(shares: Tensor, count: int = 3) -> tuple[tuple[int, float], ...]:
    """Hidden units with the largest shares, and these."""
    top = shares.topk(min(count, len(shares)))
    return tuple(zip(top.indices.tolist(), top.values.tolist(), strict=True))


def _bends(changes: Tensor, alphas: Sequence[float]) -> list[float]:
    """Distance of each change from that at the smallest |α|, scaled to its own α."""
    scale = torch.tensor([*alphas], device=changes.device, dtype=changes.dtype)
    first = scale.abs().argmin()
    line = (scale / scale[first])[:, None] * changes[first]
    bends: list[float] = ((changes - line).norm(dim=-1) / line.norm(dim=-1)).tolist()
    return bends
