"""Features of a run as a list to choose from: names, flags, strengths."""

from pathlib import Path

from melbo.explorer.run_view import Row, RunView
from melbo.features.steerable import Steerable


def listing(
    features: Steerable, folder: Path | None, num: int, chosen: int | None, strength: float
) -> str:
    """Lines that list features, in the order of their ranking where there is one.

    Args:
        features: The features.
        folder: Their run folder, which knows names, labels and flags; None if there is none.
        num: Number of features to list at most.
        chosen: Index of the feature that steers, which is marked, or None.
        strength: Multiple of the scale at which it does.
    """
    view = None if folder is None else RunView(folder)
    rows = [] if view is None else view.rows
    if len(rows) != len(features):
        rows = [Row(i, "", None, (), None) for i in range(len(features))]
    alpha = getattr(features, "alpha", None)
    lines = [f"{'':2}{'feature':>7}  {'flag':<7}{'α':>9}  name"]
    for row in rows[: max(num, 0)]:
        mark = "→" if row.index == chosen else ""
        weight = "" if alpha is None else f"{float(alpha[row.index]):.4g}"
        name = row.name if view is None else view.called(row.index)
        if mark:
            name = f"{name} (steers × {strength:g})".strip()
        line = f"{mark:2}{row.index:>7}  {row.flag or '':<7}{weight:>9}  {name}"
        lines.append(line.rstrip())
    if len(rows) > num:
        lines.append(f"{num} of {len(rows)} features: /features {len(rows)} lists all")
    if view is not None:
        lines += [
            f"labels that could not be used were set aside as {path}"
            for path in view.labels.set_aside
        ]
    return "\n".join(lines)
