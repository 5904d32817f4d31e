import pytest

from melbo import CausalMap, Exponential, fit
from research.experiments import TrainingCurves, run


def test_training_curves_are_those_of_a_fit(alike, tmp_path):
    experiment = TrainingCurves(**alike | {"shuffles": 1}, factors=(2, 4), sweeps=3)
    rows = list(run(experiment, tmp_path / "out", progress=False))
    pool, scale = experiment.prepare()
    dealt = pool.deal(0, 1)
    cmap = CausalMap(pool.lm, dealt.learn, 1, 3)
    alone = fit(cmap, Exponential(4, scale, max_steps=3, tol=0.0), progress=False)
    assert rows[1]["explained"] == pytest.approx([record["explained"] for record in alone.history])
    assert len(rows[0]["explained"]) == 3
    D = CausalMap(pool.lm, dealt.test, 1, 3).value(scale * alone.features.V)
    assert rows[1]["effects_others"][0] == pytest.approx(D.norm(dim=-1).mean().item(), rel=1e-4)
    assert "| 4 |" in experiment.table(rows)
