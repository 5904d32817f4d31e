"""A language model as the methods see it: a stack of blocks, a residual stream, a tokenizer."""

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from melbo.errors import MelboError
from melbo.models.replay import Axes, Slice, capture, grown_axes
from melbo.models.text.prompts import embedding_rows
from melbo.models.trial import (
    Traits,
    causal_error,
    find_traits,
    lists_of_blocks,
    plain_failure,
    replay_error,
    short_slice,
)
from melbo.models.weights.fingerprint import fingerprint
from melbo.models.weights.packed import has_packed, keep_as_loaded
from melbo.models.weights.storage import device_of

_REMEDY = (
    "pass blocks='path.to.layers' if the blocks were taken from the wrong place, "
    "or open an issue with the architecture's name"
)


class LanguageModel:
    """A decoder and its tokenizer.

    The model is put in evaluation mode and its parameters stop requiring gradients; nothing else
    about it is touched.

    Args:
        model: A causal language model of transformers, or one that is called and configured alike.
        tokenizer: Its tokenizer.
        name: Name in messages and run folders; the one in its configuration if left out.
        blocks: Dotted path of the list of decoder blocks (``"model.layers"``), for architectures
            where it is not found by itself.

    Attributes:
        model: The model, usable as ever.
        tokenizer: The tokenizer.
        processor: Processor of pictures and text, where `melbo.load` found one; else None.
        config: Configuration of the decoder.
        name: Name of the model.
        path: Absolute path of its checkpoint; None where the name is no path.
        blocks: The decoder blocks.
        blocks_path: Dotted path of the blocks, where it was given.
        loaded_as: Settings of `melbo.load` that quantised weights depend on: ``bits``.
        axes: Axes along which the arguments of its blocks grow.
        traits: Properties that decoding goes by, found by a trial.

    Raises:
        MelboError: The blocks are not found, a replay of them does not give the model's own
            hidden states, or earlier tokens see later ones.
    """

    def __init__(
        self, model: Any, tokenizer: Any, name: str | None = None, blocks: str | None = None
    ) -> None:
        self.model: Any = model.eval().requires_grad_(False)
        self.tokenizer = tokenizer
        self.processor: Any = None
        self.config = model.config
        if hasattr(model.config, "get_text_config"):
            self.config = model.config.get_text_config(decoder=True)
        own_name = getattr(model.config, "_name_or_path", "") or type(model).__name__
        self.name: str = name or own_name
        self.path = _absolute_path(self.name)
        self.blocks_path = blocks
        self.loaded_as: dict[str, Any] = {}
        keep_as_loaded(self.model)
        self.blocks = self._choose_blocks(self._find_blocks(blocks))
        self.traits: Traits = find_traits(self)

    @property
    def depth(self) -> int:
        """Number of decoder blocks."""
        return len(self.blocks)

    @property
    def width(self) -> int:
        """Width d of the residual stream."""
        return int(self.config.hidden_size)

    @property
    def device(self) -> torch.device:
        """Device that token ids go to."""
        return device_of(self.model.get_input_embeddings())

    @property
    def dtype(self) -> torch.dtype:
        """Precision that the model computes in."""
        return self._embeddings.dtype

    @cached_property
    def exact(self) -> bool:
        """Tell whether results agree to single precision, however a batch is made up.

        Half precision rounds, and kernels of 8 bits round by what else is in the batch.
        """
        return self.dtype in (torch.float32, torch.float64) and not has_packed(self.model)

    @property
    def _embeddings(self) -> Tensor:
        weight: Tensor = self.model.get_input_embeddings().weight
        return weight

    @property
    def max_length(self) -> int | None:
        """Longest input that the configuration allows, in tokens; None where it does not say."""
        return getattr(self.config, "max_position_embeddings", None)

    @property
    def pad(self) -> int:
        """Token id that fills rows, one that has an embedding; it is never attended to."""
        own: int | None = None if self.tokenizer is None else self.tokenizer.pad_token_id
        rows = embedding_rows(self)
        for pad in (own, *self.eos):
            if pad is not None and (rows is None or 0 <= pad < rows):
                return pad
        return 0

    @property
    def eos(self) -> list[int]:
        """Token ids that end a reply."""
        own = getattr(getattr(self.model, "generation_config", None), "eos_token_id", None)
        if own is None:
            own = getattr(self.tokenizer, "eos_token_id", None)
        if own is None:
            return []
        return list(own) if isinstance(own, (list, tuple)) else [own]

    @cached_property
    def fingerprint(self) -> str:
        """Digest of the weights; see `melbo.models.weights.fingerprint`.

        Raises:
            MelboError: The values of a parameter are nowhere to be found.
        """
        return fingerprint(self.model)

    def describe(self) -> dict[str, Any]:
        """Name, place, fingerprint and shape, as a run folder keeps them."""
        return {
            "name": self.name,
            "path": self.path,
            "dtype": str(self.dtype).removeprefix("torch."),
            "blocks": self.blocks_path,
            **self.loaded_as,
            "sha256": self.fingerprint,
            "architecture": type(self.model).__name__,
            "depth": self.depth,
            "width": self.width,
        }

    def layer(self, index: int, what: str = "layer") -> int:
        """Resolve a layer, an index into ``hidden_states``.

        Args:
            index: The layer; negative values count from the end, −1 being the output of the last
                block.
            what: Name of the layer in messages.

        Returns:
            The layer, counted from 0.

        Raises:
            MelboError: The layer is outside ``0 … depth``.
        """
        resolved = index + self.depth + 1 if index < 0 else index
        if not 0 <= resolved <= self.depth:
            raise MelboError(
                f"{what} is {index}, but {self.name} has {self.depth} blocks: "
                f"expected 0 to {self.depth}, or negative from the end"
            )
        return resolved

    def capture(self, ids: Tensor, mask: Tensor, source: int, target: int) -> Slice:
        """Run the blocks before ``target`` once and keep the slice ``source → target``.

        Args:
            ids: Token ids ``[n, T]``.
            mask: True on real tokens ``[n, T]``.
            source: Layer that the slice begins at.
            target: Layer that it ends at.
        """
        ids, mask = ids.to(self.device), mask.to(self.device)
        return capture(self.model, self.blocks, ids, mask, source, target, self.axes)

    def activations(self, tokens: Sequence[int], layer: int) -> Tensor:
        """Unsteered stream entering block ``layer`` on a prompt, ``[T, d]``.

        Args:
            tokens: Token ids of the prompt.
            layer: Index into ``hidden_states``, negative from the end.

        Raises:
            MelboError: No block reads the layer.
        """
        at = self.layer(layer)
        if at == self.depth:
            raise MelboError(
                f"no block reads layer {layer}: {self.name} has blocks 0 to {self.depth - 1}"
            )
        ids = torch.tensor([tuple(tokens)])
        return self.capture(ids, torch.ones_like(ids, dtype=torch.bool), at, at + 1).hidden[0]

    def contiguous_head(self) -> AbstractContextManager[Any]:
        """Inside the ``with`` block, the output head gets its input in one piece.

        A model that is asked for the last tokens' logits alone hands its head a view, and torch
        multiplies a view row by row on a CPU; in bfloat16 it copies the whole matrix for each row.
        33 rows, 49152 words, one thread: .53 s instead of .06, in bfloat16 6.6 s instead of .04.
        """
        head = self.model.get_output_embeddings()
        if head is None:
            return nullcontext()

        def hook(head: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
            return tuple(a.contiguous() for a in args)

        handle: AbstractContextManager[Any] = head.register_forward_pre_hook(hook)
        return handle

    def _find_blocks(self, path: str | None) -> dict[str, nn.ModuleList]:
        """Lists that may be the blocks, by their paths.

        Raises:
            MelboError: There are none.
        """
        kind = type(self.model).__name__
        if getattr(self.config, "is_encoder_decoder", False):
            raise MelboError(
                f"{kind} is an encoder-decoder, which no blocks= makes a decoder: "
                "load a causal language model"
            )
        if path is not None:
            try:
                found = self.model.get_submodule(path)
            except AttributeError:
                found = None
            if not isinstance(found, nn.ModuleList):
                raise MelboError(
                    f"{self.name} has no list of blocks at {path!r}: "
                    "expected a ModuleList; print(model) shows the names"
                )
            return {path: found}
        found = lists_of_blocks(self.model, self.config)
        if not found:
            raise MelboError(
                f"found no decoder blocks in {kind}: "
                "pass blocks='path.to.layers' if it has a stack of them"
            )
        return found

    def _choose_blocks(self, lists: dict[str, nn.ModuleList]) -> nn.ModuleList:
        """Choose the first list whose replay gives the model's own hidden states.

        Raises:
            MelboError: None does.
        """
        refusals: list[str] = []
        for each in lists.values():
            self.blocks, self.axes = each, Axes({}, {})
            try:
                self._check_replay()
            except MelboError as err:
                if len(lists) == 1:
                    raise
                refusals.append(str(err))
                continue
            return each
        kind = type(self.model).__name__
        # what was said of the list that came furthest is the most telling
        said = next((r for r in refusals if "is not causal" in r or "not finite" in r), None)
        raise MelboError(said or f"{kind} cannot be sliced at any of {', '.join(lists)}: {_REMEDY}")

    def _check_replay(self) -> None:
        """Refuse blocks that, replayed, do not give the model's own hidden states, or look ahead.

        Raises:
            MelboError: They do, or the blocks cannot be recorded or replayed at all.
        """
        kind = type(self.model).__name__
        try:
            one = short_slice(self, 1, 4)
            batch = grown_axes(one, short_slice(self, 2, 4))
            self.axes = Axes(batch, grown_axes(one, short_slice(self, 1, 5)))
            off, seen = replay_error(self), causal_error(self)
        except MelboError:
            raise
        # any architecture may fail in a way of its own; the user needs the one line
        except Exception as err:
            own = plain_failure(self)
            found, what, remedy = err, "cannot be sliced", _REMEDY
            if own is not None:
                found, what = own, f"itself fails in {str(self.dtype).removeprefix('torch.')}"
                remedy = "load it in float32 or bfloat16, or with what it needs to run"
            raise MelboError(
                f"{kind} {what} ({type(found).__name__}: {first_line(found)}): {remedy}"
            ) from err
        tolerance = 1e-3 if self.exact else 5e-2
        if not off < tolerance:
            raise MelboError(
                f"{kind} cannot be sliced: "
                f"replayed blocks differ from its hidden states by {off:.1e}: {_REMEDY}"
            )
        if not seen < tolerance:
            raise MelboError(
                f"{kind} is not causal: another last token changes the states of earlier ones by "
                f"{seen:.1e}: load a causal language model"
            )


def _absolute_path(name: str) -> str | None:
    """Absolute path of a checkpoint, a folder or a file; None for a name that is no path."""
    path = Path(name)
    configured = any((path / file).is_file() for file in ("config.json", "adapter_config.json"))
    return str(path.absolute()) if configured or path.is_file() else None


def first_line(err: BaseException) -> str:
    """First line of an error's message, at most 160 characters; its kind if there is no message."""
    lines = str(err).strip().splitlines()
    return (lines[0] if lines else type(err).__name__)[:160]
