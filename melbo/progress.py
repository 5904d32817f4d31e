"""Progress bars: one look for every loop that may take more than two seconds."""

from tqdm.auto import tqdm


def track(total: int, what: str, show: bool = True) -> tqdm:
    """Progress bar on standard error, drawn once the work has taken a second.

    Args:
        total: Number of steps.
        what: Label of the bar.
        show: Whether to draw it at all.
    """
    return tqdm(total=total, desc=what, disable=not show, delay=1, leave=False, dynamic_ncols=True)
