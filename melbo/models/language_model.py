"""A language model as the methods see it: a stack of blocks, a residual stream, a tokenizer."""

import hashlib
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from melbo.errors import MelboError
from melbo.models.replay import Axes, Slice, capture, grown_axes


class LanguageModel:
    """A decoder and its tokenizer.

    The model is put in evaluation mode and its parameters stop requiring gradients; nothing else about it is touched.

    Args:
        model: A causal language model of transformers (or one that is called and configured like it).
        tokenizer: Its tokenizer.
        name: How to call it in messages and run folders; by default the name in its configuration.
        blocks: Dotted path of the list of decoder blocks (``"model.layers"``), for architectures where it is not found by itself.

    Attributes:
        model: The model, usable as ever.
        tokenizer: The tokenizer.
        blocks: The decoder blocks.

    Raises:
        MelboError: The blocks are not found, or a replay of them does not give the model's own hidden states.
    """

    def __init__(
        self, model: Any, tokenizer: Any, name: str | None = None, blocks: str | None = None
    ) -> None:
        self.model: Any = model.eval().requires_grad_(False)
        self.tokenizer = tokenizer
        self.config = (
            model.config.get_text_config(decoder=True)
            if hasattr(model.config, "get_text_config")
            else model.config
        )
        self.name = name or getattr(model.config, "_name_or_path", "") or type(model).__name__
        self.blocks = self._find_blocks(blocks)
        self.axes = Axes({}, {})
        self._check_replay()

    @property
    def depth(self) -> int:
        """Number of decoder blocks."""
        return len(self.blocks)

    @property
    def width(self) -> int:
        """Width d of the residual stream."""
        return self.config.hidden_size

    @property
    def device(self) -> torch.device:
        """Where token ids go."""
        return self.model.get_input_embeddings().weight.device

    @property
    def dtype(self) -> torch.dtype:
        """What the model computes in."""
        return self.model.get_input_embeddings().weight.dtype

    @property
    def max_length(self) -> int | None:
        """The longest input the configuration allows, where it says."""
        return getattr(self.config, "max_position_embeddings", None)

    @property
    def pad(self) -> int:
        """A token id to fill rows with; never attended to."""
        pad = self.tokenizer.pad_token_id if self.tokenizer is not None else None
        return pad if pad is not None else self.eos[0] if self.eos else 0

    @property
    def eos(self) -> list[int]:
        """Token ids that end a reply."""
        own = getattr(getattr(self.model, "generation_config", None), "eos_token_id", None)
        if own is None:
            own = getattr(self.tokenizer, "eos_token_id", None)
        return [] if own is None else list(own) if isinstance(own, (list, tuple)) else [own]

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 over every parameter's name, shape and up to 4096 evenly spaced values.

        They are hashed as bfloat16, so that a model in float32 and the same in bfloat16 agree; float16 rounds differently.
        """
        digest = hashlib.sha256()
        for name, p in sorted(self.model.named_parameters()):
            digest.update(f"{name}{tuple(p.shape)}".encode())
            if p.device.type != "meta":
                flat = p.detach().reshape(-1)
                some = flat[:: max(1, -(-flat.numel() // 4096))]
                digest.update(some.to(torch.bfloat16).view(torch.int16).cpu().numpy().tobytes())
        return digest.hexdigest()

    def describe(self) -> dict:
        """Name, fingerprint and shape, as a run folder keeps them."""
        return {
            "name": self.name,
            "sha256": self.fingerprint,
            "architecture": type(self.model).__name__,
            "depth": self.depth,
            "width": self.width,
        }

    def layer(self, index: int, what: str = "layer") -> int:
        """``index`` into ``hidden_states`` with negative values counted from the end (−1 is the output of the last block).

        Raises:
            MelboError: Outside ``0 … depth``.
        """
        resolved = index + self.depth + 1 if index < 0 else index
        if not 0 <= resolved <= self.depth:
            raise MelboError(
                f"{what} is {index}, but {self.name} has {self.depth} blocks: expected 0 to {self.depth}, or negative from the end"
            )
        return resolved

    def capture(self, ids: Tensor, mask: Tensor, source: int, target: int) -> Slice:
        """The slice ``source → target`` on ``ids`` ``[n, T]`` (see `melbo.slice`); runs the blocks before ``target`` once."""
        return capture(
            self.model,
            self.blocks,
            ids.to(self.device),
            mask.to(self.device),
            source,
            target,
            self.axes,
        )

    def activations(self, tokens: Sequence[int], layer: int) -> Tensor:
        """The unsteered stream entering block ``layer`` on a prompt, ``[T, d]``.

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

    def contiguous_head(self) -> AbstractContextManager:
        """While this lasts, the head gets its input in one piece.

        A model that is asked for the last tokens' logits alone hands its head a view, and torch multiplies a view row by row on a CPU; in
        bfloat16 it copies the whole matrix for each. 33 rows, 49152 words, one thread: .53 s instead of .06, in bfloat16 6.6 s instead of .04.
        """
        head = self.model.get_output_embeddings()
        return (
            nullcontext()
            if head is None
            else head.register_forward_pre_hook(lambda _, args: tuple(a.contiguous() for a in args))
        )

    def _find_blocks(self, path: str | None) -> nn.ModuleList:
        depth = getattr(self.config, "num_hidden_layers", None)
        if getattr(self.config, "is_encoder_decoder", False):
            raise MelboError(
                f"{type(self.model).__name__} is an encoder-decoder, which no blocks= makes a decoder: load a causal language model"
            )
        if path is not None:
            try:
                found = self.model.get_submodule(path)
            except AttributeError:
                found = None
            if not isinstance(found, nn.ModuleList):
                raise MelboError(
                    f"{self.name} has no list of blocks at {path!r}: expected a ModuleList; print(model) shows the names"
                )
            return found
        lists = [
            m
            for _, m in self.model.named_modules()
            if isinstance(m, nn.ModuleList) and len(m) == depth
        ]
        if not lists:
            raise MelboError(
                f"found no decoder blocks in {type(self.model).__name__}: pass blocks='path.to.layers' if it has a stack of them"
            )
        return lists[0]

    def _check_replay(self) -> None:
        """Replay a four-token prompt and compare with the model's own hidden states, so that a wrong slice is never used."""

        def short(copies: int, length: int) -> tuple[Tensor, Tensor, int, int]:
            ids = torch.arange(1, length + 1).expand(copies, length)
            return (
                ids,
                ids < length,
                0,
                self.depth,
            )  # the last token is padding, so that there is a mask to look at

        try:
            one = self.capture(*short(1, 4))
            self.axes = Axes(
                grown_axes(one, self.capture(*short(2, 4))),
                grown_axes(one, self.capture(*short(1, 5))),
            )
            entering: list[Tensor] = []

            def note(block: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
                entering.append(args[0] if args else kwargs["hidden_states"])

            handles = [
                block.register_forward_pre_hook(note, with_kwargs=True) for block in self.blocks
            ]
            try:
                one = self.capture(*short(1, 4))
            finally:
                for handle in handles:
                    handle.remove()
            off = 0.0
            with torch.no_grad():
                for (_, hidden), truth in zip(
                    one.trace(one.hidden.repeat(2, 1, 1)), [*entering[1:], one.output], strict=True
                ):
                    off = max(off, ((hidden - truth)[:, :3].norm() / truth[:, :3].norm()).item())
        except MelboError:
            raise
        except (
            Exception
        ) as err:  # any architecture may fail in a way of its own; the user needs the one line
            raise MelboError(
                f"{type(self.model).__name__} cannot be sliced ({type(err).__name__}: {str(err).splitlines()[0][:120]}): {_REMEDY}"
            ) from err
        if not off < (1e-3 if self.dtype in (torch.float32, torch.float64) else 5e-2):
            raise MelboError(
                f"{type(self.model).__name__} cannot be sliced: replayed blocks differ from its hidden states by {off:.1e}: {_REMEDY}"
            )


_REMEDY = "pass blocks='path.to.layers' if the blocks were taken from the wrong place, or open an issue with the architecture's name"
