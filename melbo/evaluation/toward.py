"""Order by what features add along a target vector at the end of the model (docs/method.md §5)."""

from typing import Any

import torch
from torch import Tensor

from melbo.errors import MelboError
from melbo.features.directions import FeatureSet
from melbo.features.generate import first_tokens
from melbo.maps.described import map_from_description
from melbo.models.language_model import LanguageModel
from melbo.models.text.prompts import Prompts

#: Two strings whose first tokens are told apart, or a vector in the last layer's stream ``[d]``.
Toward = tuple[str, str] | Tensor


def target_vector(lm: LanguageModel, toward: Toward) -> Tensor:
    """Vector that changes of the last layer's stream are projected on, ``[d]``.

    Args:
        lm: The model.
        toward: The vector itself, or two strings A and B for the difference of the output head's
            rows of their first tokens, A − B.

    Raises:
        MelboError: The vector has another shape, is zero or not finite; the strings begin with the
            same token; or the head's rows are no vectors of the stream.
    """
    if isinstance(toward, Tensor):
        vector = toward
    else:
        a, b = first_tokens(lm, toward)
        head = lm.model.get_output_embeddings()
        rows = None if head is None else getattr(head, "weight", None)
        if (
            rows is None
            or rows.ndim != 2
            or rows.shape[1] != lm.width
            or not rows.is_floating_point()
        ):
            raise MelboError(
                f"the output head of {lm.name} has no rows of width {lm.width} in plain numbers: "
                "give toward a vector"
            )
        vector = (rows[a].double() - rows[b].double()).cpu()
    if vector.shape != (lm.width,) or not vector.isfinite().all() or not vector.any():
        raise MelboError(
            f"toward is a tensor of shape {tuple(vector.shape)}: "
            f"expected [{lm.width}], finite and not zero"
        )
    return vector


def describe_toward(toward: Toward | None) -> dict[str, Any]:
    """Entry of a ranking's settings for its target vector; none where there is no vector."""
    if toward is None:
        return {}
    if isinstance(toward, Tensor):
        return {"toward": f"a vector of norm {toward.norm().item():.4g}"}
    return {"toward": list(toward)}


def along(lm: LanguageModel, features: FeatureSet, prompts: Prompts, vector: Tensor) -> list[float]:
    """⟨target vector, Δ_R(v)⟩ of each feature, from its source to the end of the model.

    The change is read at the last tokens that the fit read, before the final norm.

    Args:
        lm: The model.
        features: The features, directions or adapters.
        prompts: Prompts that Δ is a mean over.
        vector: The target vector ``[d]``.
    """
    late = {"target": lm.depth, "read": "stream", "normalise_target": False, "concatenate": False}
    map = map_from_description(lm, {**features.meta["map"], **late, "prompts": prompts.describe()})
    change = map.value(features.scale * features.V)
    projected = change @ vector.to(change)
    # what overflows comes last
    worst = torch.finfo(projected.dtype).min
    found: list[float] = projected.nan_to_num(worst, worst, worst).tolist()
    return found


def along_each(
    lm: LanguageModel, features: FeatureSet, toward: Toward | None, *splits: Prompts
) -> list[list[float]] | None:
    """Result of `along` for one set of prompts after the other; None without a target vector.

    Args:
        lm: The model.
        features: The features.
        toward: The target vector, or two strings (see `target_vector`).
        splits: Sets of prompts.
    """
    if toward is None:
        return None
    vector = target_vector(lm, toward)
    return [along(lm, features, prompts, vector) for prompts in splits]
