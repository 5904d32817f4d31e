"""Candidates that change the weights, so that they reply one after the other."""

from abc import ABC, abstractmethod
from contextlib import AbstractContextManager
from typing import ClassVar

from melbo.discovery.candidates import as_table
from melbo.features.generate import Completions
from melbo.models.decoding.decode import decode
from melbo.models.edits import Edit, EditSequence
from melbo.models.language_model import LanguageModel
from melbo.models.text.prompts import Prompts
from melbo.progress import track


class OneByOne(ABC):
    """Candidates under whose weights all prompts are replied to, side by side.

    Attributes:
        what: Label of the progress bar.
    """

    what: ClassVar[str]

    @abstractmethod
    def __len__(self) -> int:
        """Number of candidates."""

    @abstractmethod
    def weights(self, lm: LanguageModel, i: int) -> AbstractContextManager[None]:
        """Context in which the model has the weights of candidate ``i``."""

    def edit(self, prompts: Prompts, i: int) -> Edit:
        """Edit of the rows of candidate ``i``, one for each prompt; none unless told otherwise."""
        return EditSequence(())

    def replies(
        self,
        lm: LanguageModel,
        prompts: Prompts,
        max_new_tokens: int,
        *,
        unsteered: bool,
        progress: bool,
    ) -> Completions:
        """See `Candidates.replies`."""
        of_candidate = []
        with track(len(self), self.what, progress) as bar:
            for i in range(len(self)):
                with self.weights(lm, i):
                    edit = self.edit(prompts, i)
                    said = decode(lm, prompts.tokens, edit, max_new_tokens, progress=False)
                of_candidate.append(said)
                bar.update()
        said = [replies[p] for p in range(len(prompts)) for replies in of_candidate]
        return as_table(lm, prompts, said, max_new_tokens, unsteered)
