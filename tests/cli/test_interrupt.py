"""Ctrl-C: a fit keeps its last sweep."""

import json
import re
import signal
import subprocess
import time

import pytest
from command_line import FIT, PROMPT, SCRIPT, contents, environment, strict

from melbo import FeatureSet
from melbo.maps import calibrate
from melbo.methods import iterate


def wait_for_sweeps(log, process, at_least=3):
    for _ in range(600):
        assert process.poll() is None, log.read_text()
        seen = re.findall(r"(\d+)/1000000", log.read_text(errors="replace"))
        if seen and int(seen[-1]) >= at_least:
            return
        time.sleep(0.1)
    raise AssertionError(f"no sweep in a minute: {log.read_text()}")


@pytest.mark.slow
def test_ctrl_c_keeps_the_last_sweep(home, tmp_path):
    log, run = tmp_path / "stderr", tmp_path / "run"
    endless = ("--max-steps", "1000000", "--tol", "0", "--scale", "1", "-m", "8", "--json")
    argv = [SCRIPT, "fit", home / "tiny", "--prompt", PROMPT, "--out", run, *endless]
    with log.open("w") as err:
        process = subprocess.Popen(
            argv,
            stdout=subprocess.PIPE,
            stderr=err,
            env=environment(),
            # tests that run in the background ignore the signal, and hand that on
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )
        try:
            wait_for_sweeps(log, process)
            process.send_signal(signal.SIGINT)
            out, _ = process.communicate(timeout=60)
        finally:
            process.kill()
    said = log.read_text()
    assert process.returncode == 130, said
    assert "Traceback" not in said
    assert f"what had been found by then is in {run}" in " ".join(said.split())
    assert strict(out)["status"] == "interrupted"
    kept = json.loads((run / "run.json").read_text())["fit"]
    assert kept["status"] == "interrupted"
    assert len(kept["history"]) >= 3
    assert len(FeatureSet.load(run)) == 8
    assert (run / "report.html").is_file()


class Interrupting:
    """A bar during whose drawing Ctrl-C is pressed."""

    def __init__(self, at):
        self.left = at

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass

    def update(self, n=1):
        self.left -= 1
        if self.left == 0:
            raise KeyboardInterrupt

    def set_postfix(self, *args, **more):
        pass


def test_ctrl_c_between_two_sweeps_keeps_the_last_one(melbo, tmp_path, monkeypatch):
    monkeypatch.setattr(iterate, "track", lambda *a: Interrupting(3))
    ended = melbo(*FIT[:4], "--out", tmp_path / "run", "-m", 3, "--scale", 1)
    assert ended.code == 130
    assert "interrupted after sweep 3" in ended.err
    kept = json.loads((tmp_path / "run" / "run.json").read_text())["fit"]
    assert (kept["status"], len(kept["history"])) == ("interrupted", 3)


def test_ctrl_c_before_the_first_sweep_leaves_nothing(melbo, home, monkeypatch):
    before = contents(home)
    monkeypatch.setattr(calibrate, "track", lambda *a: Interrupting(2))
    ended = melbo(*FIT)
    assert (ended.code, ended.out, ended.err.strip()) == (130, "", "interrupted")
    assert contents(home) == before
