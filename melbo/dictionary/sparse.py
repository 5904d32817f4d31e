"""Products with k latents of each activation: what a TopK dictionary needs of dense ones.

Beside the encoder, the only dense product is that of the gradient with the decoder. Written with
dense latents, a step would have six.
"""

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import embedding_bag, relu


def largest(values: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k largest values of each row, in any order, and their indices ``[..., k]``.

    The values are dealt into groups. The k groups with the largest maxima hold the k largest
    values, so only these are sorted: about half the time of ``topk`` for k much smaller than m.

    Args:
        values: The values ``[..., m]``.
        k: Number of them, 1 to m.
    """
    m = values.shape[-1]
    groups = 1 << (16 * k - 1).bit_length()
    if m % groups or m < 4 * groups:
        found = values.topk(k, dim=-1, sorted=False)
        return found.values, found.indices
    dealt = values.reshape(*values.shape[:-1], m // groups, groups)
    best = dealt.amax(-2).topk(k, dim=-1, sorted=False).indices
    spread = best.unsqueeze(-2).expand(*best.shape[:-1], m // groups, k)
    kept = dealt.gather(-1, spread).flatten(-2).topk(k, dim=-1, sorted=False)
    return kept.values, best.gather(-1, kept.indices % k) + kept.indices // k * groups


def sparse_reconstruction(
    x: Tensor, b_dec: Tensor, W_enc: Tensor, b_enc: Tensor, W_dec: Tensor, k: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Reconstruction of a TopK dictionary, without dense latents.

    Args:
        x: Activations ``[n, d]``.
        b_dec: Bias of the decoder ``[d]``.
        W_enc: Encoder ``[d, m]``.
        b_enc: Bias of the encoder ``[m]``.
        W_dec: Directions ``[m, d]``.
        k: Most latents that are active at once.

    Returns:
        The reconstruction ``[n, d]``; the k latents and their indices ``[n, k]``, without a
        gradient.
    """
    found: tuple[Tensor, Tensor, Tensor] = _Reconstruction.apply(  # type: ignore[no-untyped-call]
        x, b_dec, W_enc, b_enc, W_dec, k
    )
    return found


class _Reconstruction(torch.autograd.Function):
    """The reconstruction, with its derivative."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, b_dec: Tensor, W_enc: Tensor, b_enc: Tensor, W_dec: Tensor, k: int
    ) -> tuple[Tensor, Tensor, Tensor]:
        centred = x - b_dec
        values, index = largest((centred @ W_enc).add_(b_enc), k)
        values = relu(values)
        out = embedding_bag(index, W_dec, per_sample_weights=values, mode="sum") + b_dec
        ctx.save_for_backward(centred, W_enc, W_dec, values, index)
        ctx.mark_non_differentiable(values, index)
        return out, values, index

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        centred, W_enc, W_dec, values, index = ctx.saved_tensors
        grad, m = grads[0].contiguous(), len(W_dec)
        inner = (grad @ W_dec.T).gather(1, index)
        inner = torch.where(values > 0, inner, 0.0)
        # the same sparse matrix the other way round: for each latent, the rows that it is active in
        flat = index.flatten()
        order = flat.argsort()
        rows = order // index.shape[1]
        first = torch.bincount(flat, minlength=m).cumsum(0).roll(1)
        first[0] = 0

        def collect(weights: Tensor, of: Tensor) -> Tensor:
            weights = weights.flatten()[order]
            return embedding_bag(rows, of, first, per_sample_weights=weights, mode="sum")

        b_enc = torch.zeros_like(W_dec[:, 0]).index_add_(0, flat, inner.flatten())
        x = None
        if ctx.needs_input_grad[0]:
            rows_of_encoder = W_enc.T.contiguous()
            x = embedding_bag(index, rows_of_encoder, per_sample_weights=inner, mode="sum")
        return (
            x,
            grad.sum(0) - W_enc @ b_enc,
            collect(inner, centred).T.contiguous(),
            b_enc,
            collect(values, grad),
            None,
        )
