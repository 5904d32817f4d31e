"""Features in weight space: sets of rank-one adapters, saved, steered with, merged and exported (METHOD §3)."""

import json
from contextlib import AbstractContextManager
from pathlib import Path

import safetensors.torch
import torch
from torch import Tensor
from transformers.pytorch_utils import Conv1D

from .edit import Where
from .errors import MelboError
from .features import FeatureSet, read_run, refuse_existing, write_whole
from .linalg import random_rows, singular_signs
from .model import LanguageModel
from .rank_one import RankOne, Site, merged, pairs, parts, random_factors


class AdapterSet(FeatureSet):
    """m adapters: V ``[m, D]`` holds a and b of every site, flattened and of unit norm; strength 1 adds R·b̂âᵀ to each matrix.

    U, alpha, scale and target are as those of a `FeatureSet`; ``source`` is the first block of the band.

    Raises:
        MelboError: As `FeatureSet`; also a width that is not that of the sites.
    """

    kind = "adapters"

    def __post_init__(self) -> None:
        """See `FeatureSet`."""
        super().__post_init__()
        width = sum(parts(self.sites))
        if self.V.shape[1] != width:
            raise MelboError(f"got adapters of width {self.V.shape[1]}, their sites have {width}: fit them again")

    @property
    def sites(self) -> tuple[Site, ...]:
        """The matrices that are edited."""
        return tuple(Site(**site) for site in self.meta["map"]["sites"])

    def edit(self, which: Tensor | None = None, strength: float | Tensor = 1.0, where: Where = "all") -> RankOne:  # type: ignore[override]  # an edit as well, if not an Add
        """See `Bank.edit`; at all tokens, as in the fit.

        Raises:
            MelboError: ``where`` is not ``"all"``.
        """
        self.check_edit(which, strength)
        if where != "all":
            raise MelboError(f"where is {where!r}: adapters act at all tokens; leave it out")
        v = self.V if which is None else self.V[which]
        return RankOne(self.sites, v, self.scale * torch.as_tensor(strength).to(v).expand(len(v)))

    @property
    def canonical(self) -> Tensor:
        """See `FeatureSet.canonical`: (a, b) and (−a, −b) are one edit; here the entry of a that is largest in size is positive."""
        found = self.V.split(parts(self.sites), dim=-1)
        return torch.cat([part for a, b in zip(found[::2], found[1::2], strict=True) for part in singular_signs(a, b)], -1)

    def check_width(self, lm: LanguageModel) -> None:
        """The width of a factor is that of its sites, whatever the model's."""

    def random(self, num: int, generator: torch.Generator) -> "AdapterSet":
        """See `Bank.random`: a and b of every site uniform on the sphere."""
        V, U = random_factors(self.sites, num, generator), random_rows(num, self.U.shape[1], generator)
        return self.replaced(V.to(self.V), U.to(self.U), torch.zeros(num).to(self.alpha))

    def merged(self, how: str) -> "AdapterSet":
        """No mean of adapters is one of them.

        Raises:
            MelboError: Always.
        """
        raise MelboError("a mean of rank-one adapters is not of rank one: take them one by one")

    def merge(self, lm: LanguageModel, strength: float = 1.0) -> AbstractContextManager[None]:
        """Inside the ``with`` block the only adapter is part of the weights; undone bit by bit.

        Raises:
            MelboError: A set of several, another model, a strength that is not finite.
        """
        self.check_model(lm)
        return merged(lm, self.edit(strength=strength))

    def export_peft(self, lm: LanguageModel, folder: str | Path, strength: float = 1.0, force: bool = False) -> Path:
        """Write the only adapter as a LoRA of rank one that peft loads: ``adapter_config.json`` and ``adapter_model.safetensors``.

        Raises:
            MelboError: A set of several, another model, or a folder that holds an adapter already and ``force`` is not set.
        """
        self.check_model(lm)
        edit, folder = self.edit(strength=strength), Path(folder)
        refuse_existing(folder, force, ("adapter_config.json", "adapter_model.safetensors"))
        tensors = {}
        for site, (a, b) in zip(self.sites, pairs(self.sites, edit.v, edit.strength), strict=True):
            # both of unit direction, the norm on the second, as a LoRA is usually written
            norm = a.norm()
            tensors[f"base_model.model.{site.name}.lora_A.weight"] = (a / norm).contiguous()
            tensors[f"base_model.model.{site.name}.lora_B.weight"] = (norm * b).T.contiguous()
        transposed = {isinstance(lm.model.get_submodule(site.name), Conv1D) for site in self.sites}
        config = {
            "peft_type": "LORA",
            "task_type": "CAUSAL_LM",
            "base_model_name_or_path": lm.name,
            "inference_mode": True,
            "r": 1,
            "lora_alpha": 1,
            "lora_dropout": 0.0,
            "bias": "none",
            "fan_in_fan_out": transposed == {True},
            "target_modules": [site.name for site in self.sites],
        }
        folder.mkdir(parents=True, exist_ok=True)
        write_whole(
            {
                folder / "adapter_model.safetensors": safetensors.torch.save(tensors, {"format": "pt"}),
                folder / "adapter_config.json": json.dumps(config, indent=1).encode(),
            }
        )
        return folder


def load_features(folder: str | Path, lm: LanguageModel | None = None) -> FeatureSet:
    """Read a run folder of directions or of adapters; see `FeatureSet.load`."""
    kind = AdapterSet if read_run(folder)["kind"] == AdapterSet.kind else FeatureSet
    return kind.load(folder, lm)
