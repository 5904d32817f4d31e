import json
import os
from concurrent.futures import ThreadPoolExecutor

import pytest

from melbo import MelboError
from melbo.explorer.labels import Label, Labels

CORRUPT = [
    b"",
    b"{",
    b"\xff\xfe",
    b"[]",
    b'{"schema": 2, "about": null, "labels": {}}',
    b'{"schema": 1, "about": null}',
    b'{"schema": 1, "about": null, "labels": {"3": {"name": "x"}}}',
    b'{"schema": 1, "about": null, "labels": {"3": {"name": 1, "star": true, "note": ""}}}',
]


def test_labels_are_kept_over_restarts(tmp_path):
    labels = Labels(tmp_path)
    labels.put("3", Label("marmalade", True, "says „Marmelade“\non all prompts"))
    labels.put("4", Label(star=True))
    again = Labels(tmp_path)
    assert again["3"] == Label("marmalade", True, "says „Marmelade“\non all prompts")
    assert again["4"] == Label(star=True)
    assert again["5"] == Label()


def test_an_empty_label_leaves_nothing(tmp_path):
    labels = Labels(tmp_path)
    labels.put("3", Label(star=True))
    labels.put("3", Label())
    assert json.loads((tmp_path / "labels.json").read_text())["labels"] == {}


def test_looking_writes_nothing(tmp_path):
    Labels(tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("content", CORRUPT)
def test_a_corrupt_file_is_set_aside_and_not_lost(tmp_path, content):
    (tmp_path / "labels.json").write_bytes(content)
    labels = Labels(tmp_path)
    assert labels["3"] == Label()
    assert [path.read_bytes() for path in labels.set_aside] == [content]
    labels.put("3", Label("new"))
    assert Labels(tmp_path)["3"] == Label("new")
    assert labels.set_aside[0].read_bytes() == content


def test_a_second_one_gets_another_name(tmp_path):
    for content in (b"one", b"two"):
        (tmp_path / "labels.json").write_bytes(content)
        Labels(tmp_path)
    aside = sorted(tmp_path.glob("labels.set-aside-*.json"))
    assert [path.read_bytes() for path in aside] == [b"one", b"two"]


def test_a_file_corrupted_meanwhile_is_set_aside_and_the_known_labels_stay(tmp_path):
    labels = Labels(tmp_path)
    labels.put("3", Label("kept"))
    (tmp_path / "labels.json").write_bytes(b"{")
    labels.put("4", Label("new"))
    again = Labels(tmp_path)
    assert (again["3"], again["4"]) == (Label("kept"), Label("new"))
    assert labels.set_aside[0].read_bytes() == b"{"


def test_labels_of_other_features_are_set_aside(tmp_path):
    (tmp_path / "features").write_bytes(b"these")
    Labels(tmp_path, "features").put("3", Label("these"))
    assert Labels(tmp_path, "features")["3"] == Label("these")
    (tmp_path / "features").write_bytes(b"others")
    labels = Labels(tmp_path, "features")
    assert labels["3"] == Label()
    assert "these" in labels.set_aside[0].read_text()


def test_two_programs_may_label_one_folder(tmp_path):
    one, two = Labels(tmp_path), Labels(tmp_path)
    one.put("1", Label("one"))
    two.put("2", Label("two"))
    assert two["1"] == Label("one")
    again = Labels(tmp_path)
    assert (again["1"], again["2"]) == (Label("one"), Label("two"))


def test_many_pages_may_label_at_once(tmp_path):
    labels = Labels(tmp_path)
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda i: labels.put(str(i), Label(str(i))), range(50)))
    again = Labels(tmp_path)
    assert [again[str(i)].name for i in range(50)] == [str(i) for i in range(50)]


def test_what_cannot_be_written_is_said_and_changes_nothing(tmp_path, monkeypatch):
    labels = Labels(tmp_path)
    labels.put("3", Label("old"))

    def full(*args):
        raise OSError(28, "No space left on device", "labels.json")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(MelboError, match="cannot write .*No space left"):
        labels.put("3", Label("new"))
    assert labels["3"] == Labels(tmp_path)["3"] == Label("old")


def test_what_cannot_be_set_aside_is_said(tmp_path, monkeypatch):
    (tmp_path / "labels.json").write_bytes(b"{")

    def refused(*args):
        raise OSError(13, "Permission denied")

    monkeypatch.setattr(os, "rename", refused)
    with pytest.raises(MelboError, match="cannot be set aside .*Permission denied.*move it away"):
        Labels(tmp_path)
    assert (tmp_path / "labels.json").read_bytes() == b"{"
