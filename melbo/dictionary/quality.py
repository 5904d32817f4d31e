"""Quality of a dictionary on activations that it was not trained on, in the field's measures."""

from collections.abc import Iterable
from dataclasses import asdict, dataclass

import torch
from torch import Tensor

from melbo.dictionary.base import Dictionary
from melbo.errors import MelboError


@dataclass(frozen=True)
class Quality:
    """Quality of a dictionary on activations x with reconstructions x̂.

    Attributes:
        tokens: Number of activations.
        variance_explained: 1 − Σ‖x − x̂‖² / Σ‖x − mean x‖².
        l0: Latents that are active at once, mean over activations.
        dead: Share of the latents that no activation makes active.
        relative_norm: ‖x̂‖ / ‖x‖, mean over activations.
        gamma: γ = Σ‖x̂‖² / Σ⟨x̂, x⟩: x̂ / γ is nearest to x. Shrunken reconstructions have γ < 1
            (Rajamanoharan et al. 2024).
        gamma_centred: γ of x − b_dec and x̂ − b_dec, which are what the latents write; a large mean
            of the activations does not hide shrinkage here.
    """

    tokens: int
    variance_explained: float
    l0: float
    dead: float
    relative_norm: float
    gamma: float
    gamma_centred: float

    def describe(self) -> dict[str, float]:
        """All attributes, JSON-able."""
        return asdict(self)


@torch.no_grad()
def measure(dictionary: Dictionary, activations: Iterable[Tensor]) -> Quality:
    """Measure a dictionary.

    Args:
        dictionary: The dictionary.
        activations: Batches of activations ``[n, d]``, in any precision.

    Raises:
        MelboError: There are no two different activations, or they do not fit or are not finite.
    """
    sums = torch.zeros(9, dtype=torch.float64)
    total = torch.zeros(dictionary.b_dec.shape, dtype=torch.float64)
    fired = torch.zeros_like(dictionary.b_enc, dtype=torch.bool)
    bias = dictionary.b_dec.double().cpu()
    for batch in activations:
        batch = batch.to(dictionary.b_dec)
        f = dictionary.encode(batch)
        fired |= (f != 0).any(0)
        x, y = batch.double().cpu(), dictionary.decode(f).double().cpu()
        total += x.sum(0)
        # a stream of zeros has no relative norm
        relative = y.norm(dim=1) / x.norm(dim=1).clamp_min(torch.finfo(x.dtype).tiny)
        sums += torch.stack(
            [
                torch.tensor(len(x), dtype=torch.float64),
                (x - y).square().sum(),
                x.square().sum(),
                (f != 0).sum().cpu(),
                relative.sum(),
                y.square().sum(),
                (x * y).sum(),
                (y - bias).square().sum(),
                ((y - bias) * (x - bias)).sum(),
            ]
        )
    n, error, power, active, relative, own, cross, own_centred, cross_centred = sums.tolist()
    variance = power - (total.square().sum() / max(n, 1)).item()
    if not variance > 0:
        raise MelboError(
            f"got {int(n)} activations without variance: give text with two different ones or more"
        )
    return Quality(
        tokens=int(n),
        variance_explained=1 - error / variance,
        l0=active / n,
        dead=1 - fired.double().mean().item(),
        relative_norm=relative / n,
        gamma=own / cross if cross else float("nan"),
        gamma_centred=own_centred / cross_centred if cross_centred else float("nan"),
    )
