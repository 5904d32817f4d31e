import json

import pytest
import torch
from explored import PLANTED, PLANTED_WORDS, large

from melbo import FeatureSet, MelboError
from melbo.evaluation.rank import load_ranking
from melbo.explorer.labels import Label
from melbo.explorer.run_view import RunView
from melbo.features.run_folder import write_run


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return large(tmp_path_factory.mktemp("large"), num=24, prompts=8, controls=3, tokens=12)


@pytest.fixture
def run(folder):
    return RunView(folder)


def test_rows_are_those_of_the_ranking(run, folder):
    ranking, _ = load_ranking(folder)
    assert [row.index for row in run.rows] == [r["index"] for r in ranking["features"]]
    assert [row.flag for row in run.rows] == [r["flag"] for r in ranking["features"]]
    for place, column in enumerate(run.columns):
        assert [row.values[place] for row in run.rows] == column.values(ranking["features"])
    assert [c.name for c in run.columns] == [
        "validation", "held-out", "novelty", "NLL", "repet.", "KL", "α", "‖Δ‖",
    ]  # fmt: skip


def test_rows_have_names_and_clusters(run):
    assert set(run.names[PLANTED].split(", ")) >= set(PLANTED_WORDS)
    clusters = {row.index: row.cluster for row in run.rows}
    # the second half is made of the first
    assert all(clusters[i] == clusters[i + 12] is not None for i in range(12))


def test_replies_stand_beside_those_of_unsteered_and_control(run, folder):
    _, completions = load_ranking(folder)
    texts = {(c.kind, c.feature, c.prompt_text): c.text for c in completions}
    said = run.replies(5, 2)
    assert [s.part for s in said] == ["held-out"] * 6 + ["validation"] * 2
    assert len({s.prompt for s in said}) == 8
    for s in said:
        assert s.feature == texts["feature", 5, s.prompt]
        assert s.unsteered == texts["unsteered", None, s.prompt]
        assert s.control == texts["control", 2, s.prompt]


def test_search_finds_the_features_that_said_it(run):
    assert run.where_said(" Marmalade Porridge ") == {PLANTED}
    assert run.where_said("what no reply says") == set()
    assert run.where_said("  ") == run.where_said("cake") == set(range(24))


def test_ones_own_label_goes_before_words(folder, tmp_path):
    run = RunView(large(tmp_path, num=10, prompts=4, controls=1, tokens=12))
    assert run.called(PLANTED) == run.names[PLANTED] != ""
    run.labels.put(str(PLANTED), Label("jam"))
    assert run.called(PLANTED) == RunView(tmp_path).called(PLANTED) == "jam"


def test_another_fit_in_the_folder_has_labels_of_its_own(tmp_path):
    run = RunView(large(tmp_path, num=10, prompts=4, controls=1))
    run.labels.put("3", Label("jam"))
    run.features[1:].save(tmp_path, force=True)
    again = RunView(tmp_path)
    assert again.labels["3"] == Label()
    assert len(again.labels.set_aside) == 1


def test_a_run_without_ranking_has_features_and_no_replies(tmp_path, run):
    run.features.save(tmp_path)
    bare = RunView(tmp_path)
    assert [row.index for row in bare.rows] == list(range(24))
    assert [row.values for row in bare.rows] == [(a,) for a in run.features.alpha.tolist()]
    assert [c.name for c in bare.columns] == ["α"]
    assert bare.replies(3, None) == []
    assert {row.flag for row in bare.rows} == {None}


def test_a_run_of_another_kind_is_one_feature(tmp_path):
    write_run(tmp_path, {"kind": "contrast"}, {}, force=False)
    run = RunView(tmp_path)
    assert [(row.index, row.values) for row in run.rows] == [(0, ())]
    assert run.alike(0, 3) == ([], [])
    assert run.map == [(0.0, 0.0)]
    run.labels.put("0", Label("own"))
    assert RunView(tmp_path).labels["0"] == Label("own")


def test_the_nearest_feature_of_another_run(tmp_path, run):
    order = torch.arange(23, -1, -1)
    run.features[order].save(tmp_path / "turned")
    turned = RunView(tmp_path / "turned")
    assert run.nearest_in(turned, 5) == (18, pytest.approx(1.0))
    meta = {"map": {"model": {"name": "other", "sha256": "1"}}}
    other = FeatureSet(
        *(getattr(run.features, name) for name in ("V", "U", "alpha", "scale", "source", "target")),
        meta,
    )
    other.save(tmp_path / "other")
    assert run.nearest_in(RunView(tmp_path / "other"), 5) is None


def test_a_truncated_ranking_is_refused(tmp_path):
    large(tmp_path, num=10, prompts=4, controls=1)
    path = tmp_path / "completions.jsonl"
    lines = path.read_text().split("\n")
    path.write_text("\n".join(lines[:-4]) + "\n")
    with pytest.raises(MelboError, match="truncated"):
        RunView(tmp_path)


def test_the_order_by_a_target_vector_is_shown(tmp_path):
    large(tmp_path, num=10, prompts=4, controls=1)
    path = tmp_path / "ranking.json"
    ranking = json.loads(path.read_text())
    ranking["by"] = "target"
    for i, row in enumerate(ranking["features"] + ranking["controls"]):
        row["toward"] = {"validation": float(i), "held_out": -float(i)}
    path.write_text(json.dumps(ranking))
    run = RunView(tmp_path)
    place = [c.group for c in run.columns].index("along target")
    assert [row.values[place : place + 2] for row in run.rows[:3]] == [(0, 0), (1, -1), (2, -2)]
