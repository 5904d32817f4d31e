"""Threads of a command: what libraries are told before they are imported."""

import json

import pytest
import torch
from command_line import PROMPT

from melbo.cli.threads import prepare, processors, quota

NUMBERS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")


@pytest.fixture
def limited(tmp_path):
    """Control groups with a limit, as a file of this process and a folder of groups."""

    def make(own, files):
        (tmp_path / "own").write_text(own)
        for name, content in files.items():
            path = tmp_path / "groups" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(content)
        return tmp_path / "own", tmp_path / "groups"

    return make


@pytest.mark.parametrize("given", [("--threads", "3"), ("--threads=3",)])
def test_a_number_that_is_given_goes_before_what_is_set(given):
    environment = {"OMP_NUM_THREADS": "8"}
    prepare(["fit", "tiny", *given, "--out", "x"], environment)
    assert {environment[name] for name in NUMBERS} == {"3"}


@pytest.mark.parametrize("given", [(), ("--threads",), ("--threads", "many"), ("--threads=0",)])
def test_without_a_number_what_is_set_stays(given):
    environment = {"OMP_NUM_THREADS": "8"}
    prepare(["fit", *given], environment)
    assert environment["OMP_NUM_THREADS"] == "8"


def test_threads_sleep_while_they_wait_unless_told_otherwise():
    environment = {}
    prepare([], environment)
    assert (environment["OMP_WAIT_POLICY"], environment["KMP_BLOCKTIME"]) == ("PASSIVE", "0")
    environment = {"OMP_WAIT_POLICY": "ACTIVE"}
    prepare([], environment)
    assert environment["OMP_WAIT_POLICY"] == "ACTIVE"


@pytest.mark.parametrize(
    ("own", "files", "share"),
    [
        ("0::/", {"cpu.max": "150000 100000\n"}, 1.5),
        ("0::/a/b", {"a/cpu.max": "200000 100000\n", "a/b/cpu.max": "400000 100000\n"}, 2.0),
        ("0::/a", {"a/cpu.max": "max 100000\n"}, None),
        # inside a container its own group is the root, whatever its name outside is
        ("0::/outside/x", {"cpu.max": "50000 100000\n"}, 0.5),
        (
            "5:memory:/m\n4:cpu,cpuacct:/a",
            {
                "cpu,cpuacct/a/cpu.cfs_quota_us": "300000\n",
                "cpu,cpuacct/a/cpu.cfs_period_us": "100000\n",
            },
            3.0,
        ),
        (
            "4:cpu:/",
            {"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"},
            None,
        ),
        ("0::/", {}, None),
    ],
)
def test_the_quota_is_that_of_the_tightest_group(limited, own, files, share):
    assert quota(*limited(own, files)) == share


def test_a_system_without_control_groups_has_no_quota(tmp_path):
    assert quota(tmp_path / "none", tmp_path) is None
    assert processors() >= 1


def test_a_fit_keeps_and_says_its_number_of_threads(melbo, tmp_path):
    before = torch.get_num_threads()
    run = tmp_path / "run"
    try:
        argv = ("fit", "tiny", "--prompt", PROMPT, "-m", 2, "--scale", 1, "--max-steps", 1)
        ended = melbo(*argv, "--threads", 2, "--out", run)
    finally:
        torch.set_num_threads(before)
    assert ended.code == 0, ended.err
    assert json.loads((run / "run.json").read_text())["threads"] == 2
    assert "fitted with --threads 2: another number rounds otherwise" in ended.out


def test_no_number_of_threads_is_refused(refuses):
    assert "0 is not in the range" in refuses("calibrate", "tiny", "--threads", 0)
