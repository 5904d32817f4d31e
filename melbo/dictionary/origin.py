"""Origin of a dictionary: the model and the layer that it is of, as its folder says."""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from melbo.dictionary.base import Dictionary
from melbo.dictionary.saved import read_metadata
from melbo.dictionary.splice import require_width
from melbo.errors import MelboError
from melbo.models.language_model import LanguageModel

_HOOK = re.compile(r"blocks\.(\d+)\.hook_resid_(pre|post)")


@dataclass(frozen=True)
class Origin:
    """Origin of a dictionary.

    Attributes:
        model_name: Name of the model; None where the folder does not say.
        model_path: Absolute path of its checkpoint, or None likewise.
        model_dtype: Precision that its activations were read in, or None likewise.
        model_sha256: Fingerprint of its weights, or None likewise.
        layer: Layer (``hidden_states`` index), or None likewise.
    """

    model_name: str | None
    model_path: str | None
    model_dtype: str | None
    model_sha256: str | None
    layer: int | None

    @classmethod
    def of(cls, lm: LanguageModel, layer: int) -> Self:
        """Origin of a dictionary that is trained on a layer of a model.

        Args:
            lm: The model.
            layer: Index into ``hidden_states``, negative from the end.
        """
        about = lm.describe()
        return cls(lm.name, lm.path, about["dtype"], lm.fingerprint, lm.layer(layer))

    @classmethod
    def read(cls, folder: str | Path) -> Self:
        """Read the origin that a folder tells, of this package or of SAELens.

        Args:
            folder: The folder.
        """
        about = read_metadata(folder)
        hook = _HOOK.fullmatch(str(about.get("hook_name")))
        layer = None if hook is None else int(hook[1]) + (hook[2] == "post")
        return cls(
            about.get("model_name"),
            about.get("model_path"),
            about.get("model_dtype"),
            about.get("model_sha256"),
            layer,
        )

    def metadata(self, context_size: int, depth: int) -> dict[str, Any]:
        """The origin under the names by which SAELens keeps it, JSON-able.

        Args:
            context_size: Length of the contexts in tokens.
            depth: Number of blocks of the model.
        """
        layer = self.layer or 0
        last = layer == depth
        hook = f"blocks.{layer - last}.hook_resid_{'post' if last else 'pre'}"
        return {
            "model_name": self.model_name,
            "model_path": self.model_path,
            "model_dtype": self.model_dtype,
            "model_sha256": self.model_sha256,
            "hook_name": hook,
            "context_size": context_size,
            "prepend_bos": False,
            "first_token": "left out",
        }

    def check(self, dictionary: Dictionary, lm: LanguageModel) -> int:
        """Refuse a model that the dictionary is not of; the layer that it is of.

        Args:
            dictionary: The dictionary.
            lm: The model.

        Raises:
            MelboError: The model has another width or other weights, or the layer is not known.
        """
        require_width(dictionary, lm)
        if self.model_sha256 is not None and self.model_sha256 != lm.fingerprint:
            raise MelboError(
                f"the dictionary is of {self.model_name} (weights {self.model_sha256[:8]}), "
                f"this is {lm.name} (weights {lm.fingerprint[:8]}): "
                f"load the model it was trained on, in {self.model_dtype}"
            )
        if self.layer is None:
            raise MelboError(
                "the folder of the dictionary names no layer of the residual stream "
                "(hook_name blocks.N.hook_resid_pre): add it to the metadata in cfg.json"
            )
        return lm.layer(self.layer)

    def check_same(self, of: str | None, sha256: str | None) -> None:
        """Refuse features of another model, as far as both sides say which.

        Args:
            of: Name of their model.
            sha256: Fingerprint of its weights.

        Raises:
            MelboError: The weights differ.
        """
        if None not in (self.model_sha256, sha256) and self.model_sha256 != sha256:
            raise MelboError(
                f"the dictionary is of {self.model_name} (weights {str(self.model_sha256)[:8]}), "
                f"the run of {of} (weights {str(sha256)[:8]}): compare those of one model"
            )
