"""Comments that begin with ``#:`` above a constant, read as its docstring."""

from itertools import takewhile
from pathlib import Path
from typing import Any

import griffe

_MARK = "#:"


class Comments(griffe.Extension):
    """Extension of griffe, which reads strings below constants only."""

    def on_attribute_instance(self, *, attr: griffe.Attribute, **kwargs: Any) -> None:
        """Give a constant the comment above it.

        Args:
            attr: The constant.
            kwargs: The rest that griffe tells of it.
        """
        path = attr.filepath
        if attr.docstring is not None or attr.lineno is None or not isinstance(path, Path):
            return
        above = [line.strip() for line in attr.lines_collection[path][: attr.lineno - 1]]
        comment = list(takewhile(lambda line: line.startswith(_MARK), reversed(above)))
        if comment:
            text = "\n".join(line.removeprefix(_MARK).strip() for line in reversed(comment))
            attr.docstring = griffe.Docstring(text, lineno=attr.lineno - len(comment), parent=attr)
