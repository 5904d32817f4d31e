"""Features in weight space: rank-one adapters that steer, merge and export (docs/method.md §3)."""

import json
from collections.abc import Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Self

import safetensors.torch
import torch
from torch import Tensor
from transformers.pytorch_utils import Conv1D

from melbo.errors import MelboError
from melbo.features.directions import FeatureSet
from melbo.maths.linalg import random_rows, singular_signs
from melbo.models.edits import Where
from melbo.models.language_model import LanguageModel
from melbo.models.loading.gguf import ALIAS, bundled, converted
from melbo.models.weights.low_rank import RankOne, Site, merged, pairs, part_widths, random_factors
from melbo.records import refuse_existing, write_atomically

_CONFIG, _WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
# kinds of model in which peft adapts no module of this name: fast kernels read its weight past it
_PAST_MODULES = frozenset({"falcon_h1", "falcon_mamba", "mamba", "mamba2", "nemotron_h"})
_READ_PAST = "out_proj"


class AdapterSet(FeatureSet):
    """m adapters, each a rank-one edit of several matrices; strength 1 adds R·b̂âᵀ to each matrix.

    V ``[m, D]`` holds a and b of every site, flattened and of unit norm. U, alpha, scale and target
    are those of `FeatureSet`; ``source`` is the first block of the band.

    Raises:
        MelboError: `FeatureSet` would refuse the tensors, or the width is not that of the sites.
    """

    kind = "adapters"

    def __post_init__(self) -> None:
        """See `FeatureSet`; also checks the width.

        Raises:
            MelboError: The width is not that of the sites; and as `FeatureSet`.
        """
        super().__post_init__()
        width = sum(part_widths(self.sites))
        if self.V.shape[1] != width:
            raise MelboError(
                f"got adapters of width {self.V.shape[1]}, their sites have {width}: fit them again"
            )

    @property
    def sites(self) -> tuple[Site, ...]:
        """Matrices that are edited."""
        return self.provenance.sites

    def edit(
        self,
        which: Tensor | None = None,
        strength: float | Tensor = 1.0,
        where: Where = "all",
    ) -> RankOne:
        """See `Steerable.edit`; acts at all tokens, as in the fit.

        Raises:
            MelboError: ``where`` is not ``"all"``; and as `Steerable.edit`.
        """
        self.check_edit(which, strength)
        if where != "all":
            raise MelboError(f"where is {where!r}: adapters act at all tokens; leave it out")
        v = self.V if which is None else self.V[which]
        strengths = self.scale * torch.as_tensor(strength).to(v).expand(len(v))
        return RankOne(self.sites, v, strengths)

    @property
    def canonical(self) -> Tensor:
        """See `FeatureSet.canonical`.

        (a, b) and (−a, −b) are one edit; here the entry of a that is largest in size is positive.
        """
        found = torch.split(self.V, list(part_widths(self.sites)), dim=-1)
        halves = zip(found[::2], found[1::2], strict=True)
        return torch.cat([part for a, b in halves for part in singular_signs(a, b)], -1)

    def check_width(self, lm: LanguageModel) -> None:
        """See `FeatureSet.check_width`; accepts any, as the width of an adapter is its sites'."""

    def random(self, num: int, generator: torch.Generator) -> Self:
        """See `Steerable.random`; a and b of every site are uniform on the sphere."""
        V = random_factors(self.sites, num, generator)
        U = random_rows(num, self.U.shape[1], generator)
        return self.replaced(V.to(self.V), U.to(self.U), torch.zeros(num).to(self.alpha))

    def averaged(self, how: str) -> Self:
        """Refuse: no average of adapters is one of them.

        Raises:
            MelboError: Always.
        """
        raise MelboError("a mean of rank-one adapters is not of rank one: take them one by one")

    def merge(self, lm: LanguageModel, strength: float = 1.0) -> AbstractContextManager[None]:
        """Merge the only adapter into the weights inside a ``with`` block; undone bit by bit.

        Args:
            lm: The model.
            strength: Multiple of the fit's scale.

        Raises:
            MelboError: There are several adapters, they are of another model, or the strength is
                not finite.
        """
        self.check_model(lm)
        return merged(lm, self.edit(strength=strength))

    def export_peft(
        self, lm: LanguageModel, folder: str | Path, strength: float = 1.0, force: bool = False
    ) -> Path:
        """Write the adapters as one LoRA that peft loads; their sum, of rank m, if there are m.

        The LoRA names its base model by a path or a hub id that peft resolves.

        Args:
            lm: The model.
            folder: Folder for ``adapter_config.json`` and ``adapter_model.safetensors``.
            strength: Multiple of the fit's scale.
            force: Whether an adapter that is there already may be replaced.

        Raises:
            MelboError: There are no adapters, they are of another model, the model is itself a
                base with an adapter merged into it or inside a wrapper of peft, peft cannot adapt
                its matrices, the strength is not finite, the folder cannot be written, or it holds
                an adapter already and ``force`` is not set.
        """
        self.check_model(lm)
        if not len(self):
            raise MelboError("got no adapters to write: expected one or more")
        folder = Path(folder)
        refuse_export(folder, force)
        base = _checkpoint(lm)
        _require_loadable(lm, self.sites)
        edit, tensors = self.edit(torch.arange(len(self)), strength), {}
        for site, (a, b) in zip(self.sites, pairs(edit.sites, edit.v, edit.strength), strict=True):
            # a LoRA usually has its norm on the second matrix
            norm = a.norm(dim=1, keepdim=True)
            tensors[f"base_model.model.{site.name}.lora_A.weight"] = (a / norm).contiguous()
            tensors[f"base_model.model.{site.name}.lora_B.weight"] = (norm * b).T.contiguous()
        transposed = {isinstance(lm.model.get_submodule(s.name), Conv1D) for s in self.sites}
        config = {
            "peft_type": "LORA",
            "task_type": "CAUSAL_LM",
            "base_model_name_or_path": base,
            "inference_mode": True,
            "r": len(self),
            "lora_alpha": len(self),
            "lora_dropout": 0.0,
            "bias": "none",
            "fan_in_fan_out": transposed == {True},
            "target_modules": [site.name for site in self.sites],
        }
        folder.mkdir(parents=True, exist_ok=True)
        weights = safetensors.torch.save(tensors, {"format": "pt"})
        write_atomically(
            {folder / _WEIGHTS: weights, folder / _CONFIG: json.dumps(config, indent=1).encode()}
        )
        return folder


def refuse_export(folder: Path, force: bool) -> None:
    """Refuse to write a LoRA into a folder, before any work is done for it.

    Args:
        folder: Folder of the LoRA.
        force: Whether an adapter that is there already may be replaced.

    Raises:
        MelboError: There is one and ``force`` is not set, or the folder cannot be written.
    """
    refuse_existing(folder, force, (_CONFIG, _WEIGHTS), "an adapter")


def _require_loadable(lm: LanguageModel, sites: Sequence[Site]) -> None:
    """Refuse matrices on which peft puts no LoRA.

    Raises:
        MelboError: There are such matrices.
    """
    kind = getattr(lm.config, "model_type", None)
    if kind in _PAST_MODULES and any(s.name.endswith(_READ_PAST) for s in sites):
        raise MelboError(
            f"peft puts no LoRA on {_READ_PAST} of {lm.name}, whose kernels may read its weight "
            "directly: merge the adapter, and save the model inside the with block"
        )


def _checkpoint(lm: LanguageModel) -> str:
    """Path or hub id of a model's checkpoint, as transformers and peft resolve it.

    Raises:
        MelboError: It is the folder of an adapter, or the model is inside a wrapper of peft: peft
            would put the new LoRA beside that one, unmerged, and get other logits.
    """
    if hasattr(lm.model, "peft_config"):
        raise MelboError(
            f"{lm.name} is wrapped by peft, and the LoRA would name its base without that adapter: "
            "merge it (merge_and_unload), save the model, and export with what melbo.load gives"
        )
    if lm.name == ALIAS:
        return str(bundled())
    if lm.path is None:
        return lm.name
    if (Path(lm.path) / _CONFIG).is_file():
        raise MelboError(
            f"{lm.path} is an adapter merged into its base, which peft cannot take as a base: save "
            "what melbo.load gives by lm.model.save_pretrained(PATH) and "
            "lm.tokenizer.save_pretrained(PATH), and export from there"
        )
    if Path(lm.path).suffix.lower() == ".gguf":
        return str(converted(Path(lm.path)))
    return lm.path
