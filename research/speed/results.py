"""Results of the scripts: a JSON file each, and the peak memory of a process of its own."""

import subprocess
import sys
from pathlib import Path
from typing import Any

from melbo.records import to_json, write_atomically

#: Folder of the results.
RESULTS = Path(__file__).parents[1] / "results" / "speed"
_ROOT = Path(__file__).parents[2]


def save(name: str, result: dict[str, Any]) -> None:
    """Write a result as ``research/results/speed/NAME.json``.

    Args:
        name: Name of the script.
        result: The result, JSON-able.
    """
    write_atomically({RESULTS / f"{name}.json": to_json(result) + b"\n"})


def forget_peak() -> None:
    """Start the peak of this process anew (Linux): loading a model has one of its own."""
    Path("/proc/self/clear_refs").write_text("5")


def print_peak() -> None:
    """Print the peak memory of this process since `forget_peak`, in bytes."""
    status = Path("/proc/self/status").read_text().splitlines()
    [peak] = [line for line in status if line.startswith("VmHWM")]
    print(int(peak.split()[1]) * 1024)


def peak_of(code: str) -> int:
    """Peak memory in bytes of a process of its own.

    Args:
        code: Python code that the process runs; it ends with `print_peak`.
    """
    command = [sys.executable, "-c", code]
    out = subprocess.run(command, cwd=_ROOT, check=True, capture_output=True, text=True)
    return int(out.stdout.split()[-1])
