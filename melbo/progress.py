"""One look for all that takes more than a second: bars, and notes on what is being waited for."""

from threading import Event, Thread
from typing import Any, Self

from tqdm.auto import tqdm

_SECOND = 1.0


class Bar(tqdm):  # type: ignore[misc]  # tqdm has no types
    """A bar that is drawn after a second, and whose clock then goes on between two steps.

    A step may take a minute, and nobody should look at nothing for so long.
    """

    last_print_t: float

    def __init__(self, *args: Any, **more: Any) -> None:
        self._closing = Event()
        super().__init__(*args, **more)
        if not self.disable:
            Thread(target=self._tick, daemon=True).start()

    def _tick(self) -> None:
        """Draw the bar anew every second."""
        while not self._closing.wait(_SECOND):
            with self.get_lock():
                # closed meanwhile, or by now
                if not self._closing.is_set():
                    # tqdm takes away only what it knows to be drawn
                    self.last_print_t = max(self.last_print_t, self.start_t + self.delay)
                    self.refresh(nolock=True)

    def close(self) -> None:
        """Take the bar away."""
        with self.get_lock():
            self._closing.set()
        super().close()


def track(total: int, what: str, show: bool = True) -> Bar:
    """Progress bar on standard error, drawn once the work has taken a second.

    Args:
        total: Number of steps.
        what: Label of the bar.
        show: Whether to draw it at all.
    """
    return Bar(
        total=total, desc=what, disable=not show, delay=_SECOND, leave=False, dynamic_ncols=True
    )


class Waiting:
    """A note on what is being waited for, with a clock, where standard error is a terminal.

    It is drawn once the work has taken a second, and gone when the work is done.

    Args:
        what: Name of the work.
    """

    def __init__(self, what: str) -> None:
        self._what = what

    def __enter__(self) -> Self:
        """Begin to wait."""
        self._bar = Bar(
            desc=self._what,
            # no terminal, no note: a log has no use for it
            disable=None,
            delay=_SECOND,
            leave=False,
            bar_format="{desc} … {elapsed}",
        )
        return self

    def __exit__(self, *_: object) -> None:
        """Take the note away."""
        self._bar.close()
