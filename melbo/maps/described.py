"""Maps made again from their descriptions in run folders."""

from collections.abc import Mapping
from typing import Any

from melbo.errors import MelboError
from melbo.maps.adapter import AdapterMap
from melbo.maps.model_map import ModelMap
from melbo.maps.residual import CausalMap
from melbo.models.language_model import LanguageModel

_KINDS: dict[str, type[ModelMap]] = {kind.__name__: kind for kind in (CausalMap, AdapterMap)}


def map_from_description(lm: LanguageModel, saved: Mapping[str, Any]) -> ModelMap:
    """Make the map of directions, or of adapters, that wrote a description.

    Args:
        lm: The model that the map was made on.
        saved: Result of `ModelMap.describe`.

    Raises:
        MelboError: The description belongs to another kind of map, or to one of a model with hooks
            that this one does not have (or the other way round).
    """
    kind = _KINDS.get(saved.get("kind", ""))
    if kind is None:
        raise MelboError(
            f"got a map of the kind {saved.get('kind')!r}: expected one of {', '.join(_KINDS)}"
        )
    map = kind.from_description(lm, saved)
    if map.describe().get("hooked", False) != saved.get("hooked", False):
        then, now = ("with", "none") if saved.get("hooked") else ("without", "some")
        raise MelboError(
            f"the map was made {then} hooks on the blocks of {lm.name}, which now have {now}: "
            "use the features as the model was then, or fit them again"
        )
    return map
