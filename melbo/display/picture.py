"""The class of every figure; this module alone imports matplotlib as soon as it is imported."""

import io
from typing import Any

from matplotlib.figure import Figure


class Picture(Figure):
    """A figure that a notebook shows by itself, as it stands at the end of a cell.

    It is drawn without pyplot, so no figure is left open anywhere. Without this class a notebook
    would show its name only, as it draws the figures of pyplot alone.
    """

    def png(self, **more: Any) -> bytes:
        """Content of a PNG file.

        Args:
            more: Arguments of ``savefig``.
        """
        self.savefig(out := io.BytesIO(), format="png", **more)
        return out.getvalue()

    def _repr_png_(self) -> bytes:
        """Picture in a notebook."""
        return self.png()
