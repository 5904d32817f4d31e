"""Bad models and bad settings of a fit: one line that says what to do, and nothing written."""

import re
import subprocess
import sys
import time

import pytest
from command_line import FIT, PROMPT, as_typed, one_line, real


@pytest.mark.slow
def test_unknown_hub_id_by_the_console_script(tmp_path):
    start = time.monotonic()
    ended = real("fit", "no-such-org/no-such-model", "--prompt", PROMPT, "--out", tmp_path / "new")
    assert "no model 'no-such-org/no-such-model'" in one_line(ended)
    assert time.monotonic() - start < 60
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("model", "says"),
    [
        ("hollow", "no model 'hollow'"),
        ("./nowhere", "no model './nowhere'"),
        ("missing.gguf", "no file missing.gguf"),
        ("broken.gguf", "cannot read broken.gguf"),
        ("unweighted", "cannot load 'unweighted'"),
        ("cut", "cannot load 'cut'"),
        ("mismatched", r"down_proj.weight has shape \(32, 48\), expected \(32, 64\)"),
        ("translator", "translator"),
        ("infinite", r"hidden_states\[2\].*not finite"),
        ("mute", "no chat template.*--text"),
    ],
)
def test_models_that_cannot_be_used(refuses, tmp_path, monkeypatch, model, says):
    monkeypatch.setenv("MELBO_CACHE", str(tmp_path / "cache"))
    assert re.search(says, refuses("fit", model, *FIT[2:]))


@pytest.mark.parametrize(
    "argv",
    [
        ("fit", "smolm2"),
        ("audit", "./nowhere"),
        ("dictionary", "train", "smolm2"),
        ("openings", ""),
    ],
    ids=as_typed,
)
def test_a_mistyped_model_is_refused_before_anything_large_is_imported(argv):
    code = (
        f"import sys; sys.argv = {['melbo', *argv]!r}\nfrom melbo.cli import main\n"
        "try:\n    main()\nfinally:\n    print('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, encoding="utf-8")
    assert (done.returncode, done.stdout) == (2, "False\n")
    assert re.fullmatch(r"error: no model .*\n", done.stderr)


def test_a_model_too_large_is_refused_before_it_is_read(refuses):
    start = time.monotonic()
    said = refuses("fit", "absurd", *FIT[2:])
    needed = r"absurd needs 5\d{4}\.\d GiB for its weights in float32, .* GiB are free"
    assert re.search(f"{needed}: use a smaller dtype", said)
    assert time.monotonic() - start < 10


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (("--source", 3, "--target", 3), "source is 3 and target is 3"),
        (("--source", -1, "--target", 2), "expected source < target"),
        (("--source", 5), "source is 5, but tiny has 4 blocks"),
        (("--target", 5), "target is 5, but tiny has 4 blocks"),
        (("--target", -6), "target is -6"),
        (("--target-tokens", 0), "target.tokens"),
        (("--target-tokens", 40), "fewer than the 40 needed"),
        (("--prompt", "  "), "prompt 1 is blank"),
        (("--prompt", "dog " * 80), r"prompt 1 has 8\d tokens, tiny reads at most 64"),
        # Python's reading of an argument that is not UTF-8
        (("--prompt", "\udcff"), "prompt 1|UTF-8"),
        (("--prompts", "missing.txt"), "cannot read missing.txt"),
        (("--prompts", "empty.txt"), "empty.txt holds no prompts"),
        (("--prompts", "latin.txt"), "latin.txt.*not UTF-8"),
        (("--prompts", "tiny"), "'tiny' is a directory"),
        (("-m", 0), "num.factors"),
        (("-m", -2), "num.factors"),
        (("-m", "many"), "'many' is not a valid integer"),
        (("-m", 33, "--orthogonalise", "qr"), "num_factors is 33.*at most 32"),
        (("-m", 33, "--method", "linear"), "num_factors is 33"),
        (("--scale", 0), "scale is 0"),
        (("--scale", -1), "scale is -1"),
        (("--scale", "nan"), "scale is nan"),
        (("--scale", "inf"), "scale is inf"),
        (("--scale", 1e30), "not finite at scale"),
        (("--tol", "nan", "--scale", 1), "tol"),
        (("--max-steps", 0, "--scale", 1), "max.steps"),
        (("--seed", 2**70), "seed"),
        (("--method", "linear", "--start", "backward"), "linear has no setting start"),
        (("--method", "random", "--max-steps", 3), "random has no setting max_steps"),
        (("--method", "quadratic", "--orthogonalise", "soft"), "soft"),
        (("--method", "magic"), "'magic' is not one of"),
        (("--magic",), "No such option '--magic'"),
        (("--dtype", "float7"), "no dtype 'float7'"),
        (("--dtype", "int8"), "int8"),
        (("--dtype", "float8_e4m3fn"), "float8_e4m3fn"),
        (("--device", "toaster"), "toaster"),
        (("--device", "cuda:99"), "cuda:99"),
        (("--device-map", "toaster"), "cannot load .* device_map"),
        (("--blocks", "model.nothing"), "no list of blocks at 'model.nothing'"),
    ],
    ids=as_typed,
)
def test_settings_of_fit_that_cannot_work(refuses, options, says):
    assert re.search(says, refuses(*FIT, *options))


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (("--method", "cpe", "--band", 3, 9), "the band is blocks 3 to 8"),
        (("--method", "cpe", "--band", 0, 4, "--target", 2), "expected the band before it"),
        (("--method", "cpe", "--source", 1), "--source is not for adapters"),
        (("--method", "cpe", "--positions", "target"), "--positions is not for adapters"),
        (("--band", 0, 2), "--band and --matrix belong to the method cpe"),
        (("--method", "cpe", "--matrix", "head"), "head"),
        (("--seeds", 0), "seeds"),
    ],
    ids=as_typed,
)
def test_adapters_that_cannot_be_fitted(refuses, options, says):
    assert re.search(says, refuses(*FIT, "--scale", 1, *options))


@pytest.mark.parametrize(
    ("argv", "says"),
    [
        (("fit", "tiny", "--out", "new"), "got no prompts: give --prompt"),
        (("fit", "tiny", "--out", "new", "--prompts", "empty.txt"), "holds no prompts"),
        (
            ("fit", "tiny", "--text", "--prompt", "dog", "--out", "new"),
            "prompt 0 has 2 tokens, fewer than the 3 needed",
        ),
        (("fit", "tiny", "--prompt", PROMPT), "Missing option '--out'"),
        (("fit", "tiny", "--prompt", PROMPT, "--out", "good.txt"), "'good.txt' is a file"),
        (("fit", "tiny", "--text", "--system", "Sure", *FIT[2:]), "--system needs a chat template"),
        (("fit",), "Missing argument 'MODEL'"),
        (("calibrate", "tiny"), "got no prompts"),
        (("calibrate", "tiny", "--prompt", PROMPT, "--nonlinearity", 0), "nonlinearity is 0"),
        (("calibrate", "tiny", "--prompt", PROMPT, "--nonlinearity", "nan"), "nonlinearity is nan"),
        (
            ("calibrate", "tiny", "--prompt", PROMPT, "--nonlinearity", 100),
            "never rises through 100",
        ),
        (("cook",), "No such command 'cook'"),
    ],
    ids=as_typed,
)
def test_command_lines_that_cannot_work(refuses, argv, says):
    assert re.search(says, refuses(*argv))
