"""Progress bars: one look for every loop that may take more than two seconds."""

from tqdm.auto import tqdm


def track(total: int, what: str, show: bool = True) -> tqdm:
    """A bar on standard error of ``total`` steps called ``what``; drawn only when the work outlasts a second."""
    return tqdm(total=total, desc=what, disable=not show, delay=1, leave=False, dynamic_ncols=True)
