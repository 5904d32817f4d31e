"""Threads of a command: how many, and that they sleep while they wait.

All of it is told to libraries by the environment, so it has to come before they are imported.
"""

import os
from collections.abc import MutableMapping, Sequence
from math import ceil
from pathlib import Path

import click

OPTION = "--threads"
# read when a library is imported: OpenMP, and the two that bring threads of their own
_NUMBERS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
# threads that spin take the processor from the very thread that they wait for, and from other jobs
_SLEEPING = {"OMP_WAIT_POLICY": "PASSIVE", "KMP_BLOCKTIME": "0"}


def prepare(argv: Sequence[str], environment: MutableMapping[str, str] = os.environ) -> None:
    """Tell libraries that are not imported yet how many threads to use, and to let them sleep.

    What the user has set is left as it is, but for ``--threads``. Without either, the libraries
    count the processors that this process may run on; only a quota on their time is unknown to
    them.

    Args:
        argv: Arguments of the command line.
        environment: Environment that is changed.
    """
    for name, value in _SLEEPING.items():
        environment.setdefault(name, value)
    given = _given(argv)
    if given is not None:
        environment.update(dict.fromkeys(_NUMBERS, given))
    elif (share := quota()) is not None:
        for name in _NUMBERS:
            environment.setdefault(name, str(max(1, min(ceil(share), processors()))))


def _given(argv: Sequence[str]) -> str | None:
    """The number given on a command line; None for none, or for what is no number."""
    for before, each in zip(("", *argv), argv, strict=False):
        name, equals, value = each.partition("=")
        number = value if name == OPTION and equals else each if before == OPTION else ""
        if number.isdecimal() and int(number) > 0:
            return number
    return None


def processors() -> int:
    """Number of processors that this process may run on."""
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:  # not on every system
        return os.cpu_count() or 1


def quota(
    own: Path = Path("/proc/self/cgroup"), root: Path = Path("/sys/fs/cgroup")
) -> float | None:
    """Processors' worth of time that containers around this process leave it; None for no limit.

    Args:
        own: File with the control groups of this process.
        root: Folder of all control groups.
    """
    try:
        lines = own.read_text(encoding="utf-8").splitlines()
    except OSError:
        return None
    shares = []
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers and "cpu" not in controllers.split(","):
            continue
        mount = root / controllers if controllers else root
        group = mount / path.lstrip("/")
        # inside a container the path may be that outside of it: then the root is its own group
        for folder in {group, *group.parents, mount}:
            if folder.is_relative_to(root):
                shares.append(_share(folder))
    return min((share for share in shares if share is not None), default=None)


def _share(group: Path) -> float | None:
    """Limit of a single control group, of either version."""
    try:
        if (group / "cpu.max").is_file():
            time, period = (group / "cpu.max").read_text(encoding="utf-8").split()
        else:
            time = (group / "cpu.cfs_quota_us").read_text(encoding="utf-8")
            period = (group / "cpu.cfs_period_us").read_text(encoding="utf-8")
        return int(time) / int(period) if int(time) > 0 else None
    except (OSError, ValueError):  # there is none, or it is "max"
        return None


def _set(ctx: click.Context, param: click.Parameter, number: int | None) -> None:
    """Set the number in libraries that are imported already."""
    if number is not None:
        import torch

        torch.set_num_threads(number)


threads_option = click.option(
    OPTION,
    type=click.IntRange(min=1),
    callback=_set,
    expose_value=False,
    help="Number of processor threads; by default one for each processor that there is for it.",
)
