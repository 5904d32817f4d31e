"""The small transformer: every layer is a polynomial of what it reads."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from melbo.bilinear import Bilinear


@dataclass(frozen=True)
class Shape:
    """Sizes of the transformer.

    Attributes:
        vocabulary: Number of tokens.
        depth: Number of blocks.
        width: Width d of the stream.
        hidden: Number of hidden units h of an MLP.
        heads: Number of attention heads.
        length: Longest input, in tokens.
    """

    vocabulary: int
    depth: int = 4
    width: int = 128
    hidden: int = 256
    heads: int = 4
    length: int = 64


@dataclass
class Steering:
    """A vector for each row, added to the stream at the last token, and what MLPs then read.

    Attributes:
        layer: Block whose input is changed.
        vectors: The vectors ``[rows, d]``.
        read: Input of each MLP at the last token ``[rows, d]``, filled in by the pass.
    """

    layer: int
    vectors: Tensor
    read: list[Tensor]


class Attention(nn.Module):
    """Causal attention without a softmax: Σ_j (q_i·k_j) v_j / (i + 1)."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.heads = shape.heads
        self.qkv = nn.Linear(shape.width, 3 * shape.width, bias=False)
        self.out = nn.Linear(shape.width, shape.width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Output ``[rows, T, d]``."""
        rows, length, width = x.shape
        parts = self.qkv(x).view(rows, length, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        q, k, v = parts[0], parts[1], parts[2]
        pattern = (q @ k.transpose(-1, -2)).tril() / q.shape[-1] ** 0.5
        counts = torch.arange(1, length + 1, device=x.device, dtype=x.dtype)
        mixed = (pattern / counts[:, None]) @ v
        written: Tensor = self.out(mixed.transpose(1, 2).reshape(rows, length, width))
        return written


class BilinearMLP(nn.Module):
    """D[(Lx) ⊙ (Rx)]."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.L = nn.Linear(shape.width, shape.hidden, bias=False)
        self.R = nn.Linear(shape.width, shape.hidden, bias=False)
        self.D = nn.Linear(shape.hidden, shape.width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Output ``[rows, T, d]``."""
        written: Tensor = self.D(self.L(x) * self.R(x))
        return written

    def layer(self) -> Bilinear:
        """The layer by its weights."""
        return Bilinear(*(each.weight.detach() for each in (self.L, self.R, self.D)))


class BilinearTransformer(nn.Module):
    """Blocks of attention and a bilinear MLP, without norms.

    Args:
        shape: Its sizes.
    """

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.shape = shape
        self.embed = nn.Embedding(shape.vocabulary, shape.width)
        self.place = nn.Embedding(shape.length, shape.width)
        self.attention = nn.ModuleList(Attention(shape) for _ in range(shape.depth))
        self.mlps = nn.ModuleList(BilinearMLP(shape) for _ in range(shape.depth))
        self.head = nn.Linear(shape.width, shape.vocabulary, bias=False)
        for name, weight in self.named_parameters():
            # without norms, blocks that write little at first keep the stream in bounds
            small = 0.3 if name.endswith(("out.weight", "D.weight")) else 1.0
            nn.init.normal_(weight, std=small * weight.shape[1] ** -0.5)
        nn.init.normal_(self.embed.weight, std=0.7)
        nn.init.normal_(self.place.weight, std=0.2)

    def forward(self, ids: Tensor, steering: Steering | None = None) -> Tensor:
        """Logits ``[rows, T, vocabulary]``.

        Args:
            ids: Token ids ``[rows, T]``.
            steering: A vector to add, or None.
        """
        logits: Tensor = self.head(self.stream(ids, self.shape.depth, steering))
        return logits

    def layer(self, block: int) -> Bilinear:
        """A block's MLP by its weights."""
        mlp = self.mlps[block]
        assert isinstance(mlp, BilinearMLP)
        return mlp.layer()

    def stream(self, ids: Tensor, layer: int, steering: Steering | None = None) -> Tensor:
        """Stream that enters block ``layer``, ``[rows, T, d]``.

        Args:
            ids: Token ids ``[rows, T]``.
            layer: Number of blocks that run.
            steering: A vector to add, or None.
        """
        x: Tensor = self.embed(ids) + self.place(torch.arange(ids.shape[1], device=ids.device))
        for block in range(layer):
            if steering is not None and block == steering.layer:
                x = torch.cat([x[:, :-1], x[:, -1:] + steering.vectors[:, None]], 1)
            x = x + self.attention[block](x)
            if steering is not None:
                steering.read.append(x[:, -1])
            x = x + self.mlps[block](x)
        return x
