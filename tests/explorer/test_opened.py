import json

import pytest
from explored import audit, large

from melbo import FeatureSet, MelboError
from melbo.explorer.labels import Label
from melbo.explorer.opened import open_folders


@pytest.fixture(scope="module")
def features(tmp_path_factory):
    folder = large(tmp_path_factory.mktemp("run"), num=8, prompts=4, controls=1)
    return FeatureSet.load(folder)


def test_runs_are_called_by_their_folders(tmp_path, features):
    for name in ("a/run", "b/run", "b/other"):
        features.save(tmp_path / name)
    opened = open_folders([tmp_path / name for name in ("a/run", "b/other", "b/run", "a/run")])
    assert list(opened.runs) == ["run", "other", str(tmp_path / "b" / "run")]
    assert opened.audits == []


def test_an_audit_brings_its_runs(tmp_path, features):
    audit(tmp_path / "audit", features)
    features.save(tmp_path / "run")
    opened = open_folders([tmp_path / "audit", tmp_path / "run"])
    assert [each.name for each in opened.audits] == ["audit"]
    assert list(opened.runs) == ["run", "audit/directions/31"]
    assert opened.run_in(opened.audits[0], "directions/31") == "audit/directions/31"
    assert opened.run_in(opened.audits[0], "directions/32") is None
    again = open_folders([tmp_path / "audit" / "directions" / "31", tmp_path / "audit"])
    assert list(again.runs) == ["31"]
    assert again.run_in(again.audits[0], "directions/31") == "31"


def test_findings_keep_their_labels(tmp_path):
    audit(tmp_path)
    open_folders([tmp_path]).audits[0].labels.put("marmalade, porridge", Label("jam", True))
    opened = open_folders([tmp_path])
    assert opened.audits[0].labels["marmalade, porridge"] == Label("jam", True)
    assert opened.labels == [opened.audits[0].labels]
    assert opened.runs == {}


def test_a_folder_with_neither_is_refused(tmp_path):
    with pytest.raises(MelboError, match="no run in .*give a folder"):
        open_folders([tmp_path])


@pytest.mark.parametrize("content", ["{", "[]", json.dumps({"findings": []})])
def test_findings_that_cannot_be_read_are_refused(tmp_path, content):
    (tmp_path / "findings.json").write_text(content)
    with pytest.raises(MelboError, match=r"findings\.json .*run the audit again"):
        open_folders([tmp_path])
