"""The header of a GGUF file: which part of a model it is, and whether it is whole."""

import mmap
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

_MAGIC = b"GGUF"
_VERSIONS = (2, 3)
# formats of numbers by their code; 8 is a string, 9 an array
_NUMBERS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q"}
_NUMBERS |= {12: "d"}
_STRING, _ARRAY = 8, 9


@dataclass(frozen=True)
class Header:
    """Facts of a GGUF file.

    Attributes:
        part: Index of the file among the parts of its model.
        parts: Number of the parts, 1 for a whole model.
        tensors: Number of tensors in the file.
        tensors_of_all: Number of tensors of the model, where the file says it; else 0.
    """

    part: int
    parts: int
    tensors: int
    tensors_of_all: int

    @classmethod
    def of(cls, path: Path) -> Self | None:
        """Read the header of a file; None if it is no GGUF file of a known version.

        Args:
            path: The file.

        Raises:
            ValueError: The file is cut short.
            OSError: It cannot be read.
        """
        with path.open("rb") as file:
            if file.read(4) != _MAGIC:
                return None
            with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
                reader = _Reader(data)
                try:
                    return cls._read(reader)
                except (struct.error, IndexError, UnicodeDecodeError) as err:
                    raise ValueError("the file is cut short or damaged") from err

    @classmethod
    def _read(cls, reader: "_Reader") -> Self | None:
        reader.at = 4
        if reader.number("I") not in _VERSIONS:
            return None
        tensors, keys = reader.number("Q"), reader.number("Q")
        known = {}
        for _ in range(keys):
            key = reader.string()
            value = reader.value(reader.number("I"))
            if key.startswith("split.") or key == "general.alignment":
                known[key] = int(value)
        last = 0
        for _ in range(tensors):
            reader.skip_string()
            shape = [reader.number("Q") for _ in range(reader.number("I"))]
            kind, offset = reader.number("I"), reader.number("Q")
            last = max(last, offset + _bytes(kind, shape))
        step = known.get("general.alignment", 32) or 32
        begin = -(-reader.at // step) * step
        if tensors and begin + last > len(reader.data):
            raise ValueError(
                f"it is cut short, {len(reader.data)} bytes where its tensors take {begin + last}"
            )
        total = known.get("split.tensors.count", 0)
        return cls(known.get("split.no", 0), known.get("split.count", 1), tensors, total)


class _Reader:
    """Numbers and strings, one after the other."""

    def __init__(self, data: mmap.mmap) -> None:
        self.data, self.at = data, 0

    def number(self, kind: str) -> Any:
        value = struct.unpack_from(f"<{kind}", self.data, self.at)[0]
        self.at += struct.calcsize(f"<{kind}")
        return value

    def skip_string(self) -> None:
        size = self.number("Q")
        self.at += size
        if self.at > len(self.data):
            raise IndexError

    def string(self) -> str:
        begin = self.at + 8
        self.skip_string()
        return self.data[begin : self.at].decode()

    def value(self, kind: int) -> Any:
        """Read a number; 0 for a string or an array, which are skipped.

        Raises:
            IndexError: There is no such kind of value.
        """
        if kind in _NUMBERS:
            return self.number(_NUMBERS[kind])
        if kind == _STRING:
            self.skip_string()
        elif kind == _ARRAY:
            inner, length = self.number("I"), self.number("Q")
            if inner in _NUMBERS:
                self.at += length * struct.calcsize(f"<{_NUMBERS[inner]}")
                return 0
            for _ in range(length):
                self.value(inner)
        else:
            raise IndexError
        return 0


def _bytes(kind: int, shape: list[int]) -> int:
    """Bytes that a tensor takes; 1 for a number format that is not known here."""
    try:
        from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

        block, size = GGML_QUANT_SIZES[GGMLQuantizationType(kind)]
    except (ImportError, KeyError, ValueError):
        return 1
    number = 1
    for width in shape:
        number *= width
    return number // block * size
