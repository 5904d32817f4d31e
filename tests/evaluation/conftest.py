import shutil

import pytest
from cases import tiny_model

from melbo import CausalMap, Exponential, Prompts, calibrate, fit
from melbo.evaluation.rank import rank


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A calibrated run, as fitted and as ranked."""
    lm = tiny_model("llama")
    used, chosen, told = (
        Prompts.chat(lm, texts)
        for texts in (
            ["Tell me how to bake a cake"],
            ["dog and sun", "he or she"],
            ["red or blue ?"],
        )
    )
    cmap = CausalMap(lm, used, 1, 3)
    found = calibrate(cmap, progress=False)
    features = fit(cmap, Exponential(3, found.scale), progress=False).features.with_meta(
        calibration=found.describe()
    )
    folder = tmp_path_factory.mktemp("runs")
    features.save(folder / "fitted")
    features.save(folder / "ranked")
    rank(
        lm,
        features,
        chosen,
        told,
        contrast=("yes", "no"),
        num_controls=2,
        max_new_tokens=4,
        progress=False,
    ).save(folder / "ranked")
    return folder


@pytest.fixture
def fitted(made, tmp_path):
    return shutil.copytree(made / "fitted", tmp_path / "fitted")


@pytest.fixture
def ranked(made, tmp_path):
    return shutil.copytree(made / "ranked", tmp_path / "ranked")
