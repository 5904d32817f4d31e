"""A transcoder's directions planted among those of dictionaries, and the commands about them."""

import pytest
import torch
from cases import tiny_model
from click.testing import CliRunner

from melbo import MelboError
from melbo.dictionary import TopK, save
from melbo.dictionary.origin import Origin
from melbo.records import ResultLog
from research.audits.trial import WAYS, latents_of
from research.dictionaries import overlap, trained
from research.dictionaries.commands import dictionary as commands
from research.dictionaries.overlap import Overlap

fit = overlap.fit
SETTING = Overlap(source=1, target=3, num_factors=4, prompt="red dog")


@pytest.fixture(scope="module")
def lm():
    return tiny_model("llama", torch.float32)


def saved(lm, folder, layer, rows=None):
    """A dictionary of a layer, with these directions among random ones."""
    dictionary = TopK(lm.width, 120, 4, seed=layer)
    if rows is not None:
        with torch.no_grad():
            dictionary.W_dec[: len(rows)] = rows
    return save(dictionary, folder, Origin.of(lm, layer).metadata(16, lm.depth))


def test_directions_of_the_transcoder_are_found_where_they_are_planted(lm, tmp_path, monkeypatch):
    log = ResultLog(tmp_path / "rows.jsonl")
    kept = []
    monkeypatch.setattr(overlap, "fit", lambda *a, **k: kept.append(fit(*a, **k)) or kept[-1])
    one = SETTING.measure(lm, log, saved(lm, tmp_path / "random", 1))
    assert one["matches"]["V"]["mean"] < 0.9
    learnt = kept[0].features
    folders = [
        saved(lm, tmp_path / "v", 1, -2 * learnt.V.cpu()),
        saved(lm, tmp_path / "u", 3, learnt.U.cpu()),
    ]
    row = SETTING.measure(lm, log, *folders)
    for found in row["matches"].values():
        assert found["cosine"] == pytest.approx([1.0] * 4, abs=1e-4)
        assert [null["above"] for null in found["nulls"].values()] == [1.0, 1.0]
    assert row["shapes"]["W_dec of V"] == [120, lm.width]
    cosines = (learnt.V @ learnt.V.T).double() - torch.eye(4)
    expected = pytest.approx((cosines.square().sum() / 12).item(), rel=1e-4)
    assert row["geometry"]["V"]["penalty"] == expected
    # a row that is there is not measured again
    assert SETTING.measure(lm, log, *folders) == row
    assert len(kept) == 2
    monkeypatch.setattr(overlap, "ROWS", log.path)
    tables = overlap.page_tables()
    assert "| V, layer 1 | 4×32 |" in tables["dictionaries-overlap"]
    assert (
        "| U, layer 3 in the decoder of layer 3 | 1.000 | 1.000 |"
        in (tables["dictionaries-matches"])
    )


def test_a_dictionary_of_another_layer_or_none_is_refused(lm, tmp_path):
    folder = saved(lm, tmp_path / "d", 2)
    with pytest.raises(MelboError, match="is of layer 2: give a dictionary of layer 1"):
        SETTING.measure(lm, ResultLog(None), folder)
    with pytest.raises(MelboError, match="python -m research dictionary train --layer 1"):
        SETTING.measure(lm, ResultLog(None), tmp_path / "none")


def test_the_way_of_latents_names_the_command_that_trains_the_dictionary(lm, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(MelboError, match="python -m research dictionary train --layer 8"):
        WAYS["latents"].elicitors(lm)
    monkeypatch.setattr("research.audits.trial.Setting", lambda: trained.Setting(layer=2))
    saved(lm, trained.Setting(layer=2).folder, 2)
    assert latents_of(lm).layer == 2


def test_a_dictionary_that_is_gone_is_trained_again_and_no_row_is_added(tmp_path, monkeypatch):
    made = []

    def measure(setting, folder):
        made.append(folder)
        folder.mkdir(parents=True)
        (folder / "cfg.json").touch()
        return {**setting.describe(), "quality": {"variance_explained": 0.5}, "minutes": 1}

    rows = tmp_path / "rows.jsonl"
    monkeypatch.setattr(trained, "ROWS", rows)
    monkeypatch.setattr(trained.Setting, "measure", measure)
    for out in ("a", "a", "b"):
        call = ["train", "--layer", "3", "--out", str(tmp_path / out)]
        assert CliRunner().invoke(commands, call).exit_code == 0
    assert made == [tmp_path / "a", tmp_path / "b"]
    assert len(ResultLog(rows).rows) == 1
