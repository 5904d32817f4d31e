"""Origin of features: a run's description of the map they were fitted on, as values."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

from melbo.errors import MelboError
from melbo.models.language_model import LanguageModel
from melbo.models.placement import Placement
from melbo.models.text.prompts import Prompts
from melbo.models.weights.low_rank import Site


@dataclass(frozen=True)
class Provenance:
    """Origin of features: the model and the map that they were fitted on.

    No other module reads a run's description of its map, so the layout is known here alone.

    Attributes:
        model_name: Name of the model; None for a map that is no language model.
        model_path: Absolute path of its checkpoint when the features were fitted; None where it had
            none, or where an older version wrote the run.
        model_dtype: Precision it had then (``"bfloat16"``), or None likewise.
        model_blocks: Dotted path of its blocks, where it was given.
        model_bits: Bits of its weights, where they were quantised while it was loaded.
        model_sha256: Fingerprint of its weights (`LanguageModel.fingerprint`), or None likewise.
        prompts: Prompts of the map; None for a map that has none.
        placement: Layers and tokens of the map.
        sites: Matrices that adapters edit; none for directions.
        reads_stream: Whether the map reads the residual stream itself.
    """

    model_name: str | None
    model_path: str | None
    model_dtype: str | None
    model_blocks: str | None
    model_bits: int | None
    model_sha256: str | None
    prompts: Prompts | None
    placement: Placement
    sites: tuple[Site, ...]
    reads_stream: bool

    @classmethod
    def of(cls, meta: Mapping[str, Any]) -> Self:
        """Read the ``meta`` of a set of features."""
        fitted = meta.get("map", {})
        model, prompts = fitted.get("model") or {}, fitted.get("prompts")
        return cls(
            model_name=model.get("name"),
            model_path=model.get("path"),
            model_dtype=model.get("dtype"),
            model_blocks=model.get("blocks"),
            model_bits=model.get("bits"),
            model_sha256=model.get("sha256"),
            prompts=None if prompts is None else Prompts.from_description(prompts),
            placement=Placement.from_description({"source": 0, "target": 1, **fitted}),
            sites=tuple(Site(**site) for site in fitted.get("sites", ())),
            reads_stream=fitted.get("read", "stream") == "stream",
        )

    def check_model(self, lm: LanguageModel) -> None:
        """Refuse a model that the features were not fitted on.

        Raises:
            MelboError: The weights differ; names both models.
        """
        if self.model_sha256 is not None and self.model_sha256 != lm.fingerprint:
            loading = (
                f"with bits={self.model_bits}" if self.model_bits else "in float32 or bfloat16"
            )
            raise MelboError(
                f"these features were fitted on {self.model_name} "
                f"(weights {self.model_sha256[:8]}), this is {lm.name} "
                f"(weights {lm.fingerprint[:8]}): load the model they belong to, {loading}"
            )

    def prompts_like(
        self,
        lm: LanguageModel,
        texts: list[str] | tuple[str, ...],
        form: Prompts | None = None,
    ) -> Prompts:
        """Read texts as the prompts of the fit were read: same kind, same settings of the chat.

        Args:
            lm: The model.
            texts: The texts.
            form: Prompts that they are read like instead of the fit's.

        Raises:
            MelboError: There is no form, nor were the features fitted with prompts; and as
                `Prompts.like`.
        """
        if form is not None:
            return form.like(lm, texts)
        if self.prompts is None:
            raise MelboError(
                "this run was not made with prompts, so nothing says how others are to be read: "
                "use melbo.generate"
            )
        return self.prompts.like(lm, texts)
