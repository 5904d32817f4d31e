"""Pictures of the method, drawn from a map that is small enough to be looked at.

``python -m research.site.pictures`` writes them into ``docs/pictures/``. Its factors are planted,
Δ(θ) = Σ a_ℓ (exp⟨v_ℓ, θ⟩ − 1) u_ℓ, so every curve is computed and none is sketched.
"""

import math
import re
from collections.abc import Callable
from io import StringIO
from itertools import pairwise
from pathlib import Path
from typing import Any

import click
import matplotlib as mpl
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch
from torch import Tensor

import melbo
from melbo.maths.linalg import random_rows

FOLDER = Path(__file__).parents[2] / "docs" / "pictures"
#: Colours in light; the dark ones stand in their places where the reader's system is dark.
INK, MUTED, CARD, LINE = "#1b1f24", "#5b6470", "#f8f9fb", "#c9ced6"
FIRST, SECOND, THIRD = "#3949ab", "#c2571a", "#0b7a68"
DARK = {
    INK: "#e8eaed",
    MUTED: "#a5adb8",
    CARD: "#20232b",
    LINE: "#4a515d",
    FIRST: "#9fa8da",
    SECOND: "#ffb07a",
    THIRD: "#5fd4bf",
}
#: Angles of the two planted directions, what each is worth, and the norm of a push.
ANGLES, WORTH, R = (0.9, 3.6), (1.0, 0.7), 2.0
# matplotlib spells out the names of all its settings as a type
STYLE: Any = {
    "svg.fonttype": "path",
    "svg.hashsalt": "melbo",
    "font.size": 11,
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": MUTED,
    "axes.facecolor": CARD,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "figure.facecolor": CARD,
    "legend.frameon": False,
}


def planted() -> tuple[melbo.FunctionMap, Tensor, Tensor]:
    """The map, its directions V `[2, 2]` and its target directions U `[2, 2]`."""
    V = rows(torch.tensor(ANGLES))
    U = rows(torch.tensor([0.3, 0.3 + math.pi / 2]))
    worth = torch.tensor(WORTH)
    return melbo.FunctionMap(lambda x: (worth * torch.expm1(x @ V.T)) @ U, 2, 2), V, U


def rows(angles: Tensor) -> Tensor:
    """Unit vectors at some angles `[k, 2]`."""
    return torch.stack([angles.cos(), angles.sin()], -1)


def box(ax: Axes, x: float, y: float, text: str, colour: str, width: float) -> None:
    """Box with a word in it, in the middle of its place."""
    shape = FancyBboxPatch(
        (x - width / 2, y - 0.3), width, 0.6, "round,pad=0.05", fc=CARD, ec=colour, lw=1.5
    )
    ax.add_patch(shape)
    ax.text(x, y, text, ha="center", va="center", color=colour)


def arrow(
    ax: Axes, start: tuple[float, float], end: tuple[float, float], colour: str = INK
) -> None:
    """Arrow from one place to another."""
    shape = FancyArrowPatch(start, end, arrowstyle="-|>", mutation_scale=14, color=colour, lw=1.6)
    ax.add_patch(shape)


def stream() -> Figure:
    """A push at layer s, and its answer at layer t."""
    figure = Figure((8.2, 3.6), layout="constrained")
    ax = figure.add_subplot()
    ax.set(xlim=(-0.7, 15.9), ylim=(-2, 2.3))
    ax.axis("off")
    places = [0.8, 4.2, 7.6, 11.0, 14.4]
    names = ["embeddings", "blocks 0 … s − 1", "blocks s … t − 1", "blocks t …", "next word"]
    for x, name in zip(places, names, strict=True):
        box(ax, x, 0, name, FIRST if "s …" in name else INK, 2.6)
    for left, right in pairwise(places):
        arrow(ax, (left + 1.35, 0), (right - 1.35, 0))
    push, answer = (places[1] + places[2]) / 2, (places[2] + places[3]) / 2
    arrow(ax, (push, 1.45), (push, 0.1), SECOND)
    ax.text(push, 1.85, "push: add R·v\nto every token", ha="center", va="center", color=SECOND)
    arrow(ax, (answer, -0.1), (answer, -1.1), THIRD)
    says = "answer: Δ(Rv), how the\nlast tokens change"
    ax.text(answer, -1.5, says, ha="center", va="center", color=THIRD)
    ax.text(places[0] - 1.3, -1.5, "residual stream →", color=MUTED)
    return figure


def round_the_circle() -> Figure:
    """Length of the answer to pushes in every direction, and what three random ones meet."""
    cmap, _, _ = planted()
    angles = torch.linspace(0, 2 * math.pi, 721)
    size = cmap.value(R * rows(angles)).norm(dim=-1)
    figure = Figure((7, 3.6), layout="constrained")
    ax = figure.add_subplot(xlabel="direction v of the push, in degrees", ylabel="‖Δ(Rv)‖")
    ax.plot(angles.rad2deg(), size, color=FIRST, lw=2)
    drawn = 2 * math.pi * torch.rand(3, generator=torch.Generator().manual_seed(0))
    met = cmap.value(R * rows(drawn)).norm(dim=-1)
    ax.plot(drawn.rad2deg(), met, "o", color=SECOND, label="three random directions")
    for name, angle in zip(("first", "second"), ANGLES, strict=True):
        ax.axvline(math.degrees(angle), color=THIRD, ls="--", lw=1.2)
        at = (math.degrees(angle) + 5, 1.08 * size.max().item())
        ax.text(*at, f"{name} planted factor", color=THIRD)
    ax.set(xticks=range(0, 361, 60), ylim=(0, 1.2 * size.max().item()))
    ax.legend(loc="upper right", bbox_to_anchor=(1, 0.86))
    return figure


def many(count: int, worth: Tensor) -> tuple[melbo.FunctionMap, Tensor]:
    """A map of planted factors in 128 dimensions, and their directions `[count, 128]`.

    Args:
        count: Number of factors.
        worth: What each is worth `[count]`.
    """
    generator = torch.Generator().manual_seed(1)
    V, U = (random_rows(count, 128, generator) for _ in range(2))
    return melbo.FunctionMap(lambda x: (worth * torch.expm1(x @ V.T)) @ U, 128, 128), V


def sweeps() -> Figure:
    """Directions as they turn, sweep by sweep, towards planted ones."""
    cmap, V = many(16, torch.ones(16))
    best = []
    for steps in range(1, 9):
        method = melbo.Exponential(32, 4.0, max_steps=steps, tol=0)
        found = melbo.fit(cmap, method, progress=False).features.V
        best.append((V @ found.T).max(dim=-1).values)
    drawn = melbo.fit(cmap, melbo.Random(32, 4.0), progress=False).features.V
    chance = (V @ drawn.T).max(dim=-1).values.mean().item()
    figure = Figure((7, 3.4), layout="constrained")
    ax = figure.add_subplot(xlabel="sweep", ylabel="best cosine with a feature")
    ax.plot(range(1, 9), torch.stack(best), color=FIRST, lw=1, alpha=0.6)
    mean = torch.stack(best).mean(-1)
    ax.plot(range(1, 9), mean, color=SECOND, lw=2.5, label="mean of 16 planted directions")
    ax.axhline(chance, color=THIRD, ls="--", label="mean, with 32 random directions")
    ax.set(ylim=(0, 1.03))
    ax.legend(loc="lower right", bbox_to_anchor=(1, 0.3))
    return figure


def scale() -> Figure:
    """Answer along one direction beside its linear part, and the scale where they part."""
    cmap, V, _ = planted()
    found = melbo.calibrate(cmap, progress=False)
    v = V[:1]
    norms = torch.linspace(0, 2 * found.scale, 101)
    real = cmap.value(norms[:, None] * v).norm(dim=-1)
    straight = norms * cmap.jvp(v).norm()
    figure = Figure((7, 3.4), layout="constrained")
    ax = figure.add_subplot(xlabel="norm of the push", ylabel="‖Δ‖")
    ax.plot(norms, real, color=FIRST, lw=2, label="answer")
    ax.plot(norms, straight, color=MUTED, ls="--", label="linear part")
    ax.axvline(found.scale, color=SECOND, lw=1.4)
    ax.text(found.scale * 1.03, float(real.max()) * 0.5, f"R = {found.scale:.2f}", color=SECOND)
    ax.set(xlim=(0, None), ylim=(0, None))
    ax.legend(loc="upper left")
    return figure


def strengths() -> Figure:
    """Strength α of each feature found, beside those of the planted factors."""
    cmap, V = many(6, torch.linspace(1.0, 0.5, 6))
    features = melbo.fit(cmap, melbo.Exponential(16, 4.0), progress=False).features
    # an orthonormal set has α = ‖Δ_R(v)‖ / (e − 1) (docs/method.md §2)
    planted = cmap.value(4.0 * V).norm(dim=-1) / (math.e - 1)
    figure = Figure((7, 3.2), layout="constrained")
    ax = figure.add_subplot(xlabel="feature, strongest first", ylabel="strength α")
    places = torch.arange(1, 17)
    found = features.alpha.sort(descending=True).values
    ax.bar((places - 0.2).tolist(), found.tolist(), 0.4, color=FIRST, label="found")
    ax.bar((places[:6] + 0.2).tolist(), planted.tolist(), 0.4, color=SECOND, label="planted")
    ax.set(xticks=range(1, 17))
    ax.legend(loc="upper right")
    return figure


#: Pictures by the names of their files.
PICTURES: dict[str, Callable[[], Figure]] = {
    "stream": stream,
    "circle": round_the_circle,
    "scale": scale,
    "sweeps": sweeps,
    "strengths": strengths,
}


def draw(name: str) -> str:
    """A picture as SVG that follows the reader's light or dark system.

    Args:
        name: Name in `PICTURES`.
    """
    with mpl.rc_context(STYLE):
        text = StringIO()
        PICTURES[name]().savefig(text, format="svg", metadata={"Date": None, "Creator": None})
    rules = "".join(
        f'[style*="{part}: {light}"]{{{part}:{dark} !important}}'
        for light, dark in DARK.items()
        for part in ("fill", "stroke")
    )
    style = f"<style>@media (prefers-color-scheme:dark){{{rules}}}</style>"
    return re.sub(r"(<svg[^>]*>)", rf"\1\n {style}", text.getvalue(), count=1)


@click.command()
def main() -> None:
    """Write the pictures into docs/pictures/."""
    for name in PICTURES:
        (FOLDER / f"{name}.svg").write_text(draw(name), encoding="utf-8")
        click.echo(FOLDER / f"{name}.svg")


if __name__ == "__main__":
    main()
