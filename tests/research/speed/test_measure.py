import json

import pytest
import torch
from cases import tiny_model
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from melbo import CausalMap, MelboError, Prompts, calibrate
from melbo.maths.linalg import random_rows
from research.speed import gpu
from research.speed.flops import needed_flops, products_of_model, weights
from research.speed.measure import SpeedRow, measure_speed
from research.speed.plain import PlainFormulation
from research.speed.tables import speed_table

PROMPT = "Tell me how to bake a cake ! What should I do this weekend ?"


@pytest.fixture(scope="module")
def lm():
    return tiny_model("llama", torch.float32)


def a_map(lm, **settings):
    return CausalMap(lm, Prompts.text(lm, [PROMPT]), 0, 3, **settings)


def counted(cmap, backward, rows=3):
    """Operations that torch counts in a pass, needed or not."""
    theta = torch.ones(rows, cmap.d_source)
    with FlopCounterMode(display=False) as counter, sdpa_kernel([SDPBackend.MATH]):
        if backward:
            cmap.value_and_vjp(theta, torch.ones(rows, cmap.d_target))
        else:
            cmap.value(theta)
    return counter.get_total_flops() / rows


@pytest.mark.parametrize("positions", ["all", "target"])
@pytest.mark.parametrize("backward", [False, True])
@pytest.mark.parametrize("name", ["llama", "gpt2", "qwen2"])
def test_operations_needed_are_those_that_run_and_hardly_fewer(name, backward, positions):
    cmap = a_map(tiny_model(name, torch.float32), positions=positions)
    needed, ran = needed_flops(cmap, backward), counted(cmap, backward)
    # beyond what is needed run: attention to later tokens, and the last block's queries, keys and
    # values of the last tokens twice; much, in so small a model
    assert needed < ran < 1.35 * needed


def test_operations_of_a_whole_block_by_hand(lm):
    cmap = a_map(lm)
    tokens, d = len(cmap.prompts.tokens[0]), lm.width
    config = lm.config
    width = config.num_attention_heads * config.head_dim
    narrow = config.num_key_value_heads * config.head_dim
    matrices = 2 * d * width + 2 * d * narrow + 3 * d * config.intermediate_size
    assert sum(weights(lm.blocks[0], config).values()) == matrices
    two, one = (needed_flops(CausalMap(lm, cmap.prompts, s, 2), False) for s in (0, 1))
    assert two - one == 2 * tokens * matrices + 4 * width * tokens * (tokens + 1) / 2


def test_a_mixture_counts_the_experts_that_a_token_visits():
    mixture = tiny_model("mixtral", torch.float32)
    config = mixture.config
    sizes = weights(mixture.blocks[0], config)
    held = {name: p for name, p in mixture.blocks[0].named_parameters() if p.ndim == 3}
    assert held
    for name, p in held.items():
        visited = p.numel() * config.num_experts_per_tok / config.num_local_experts
        assert sizes[name] == visited


@pytest.mark.parametrize("batch", [pytest.param(1, marks=pytest.mark.slow), 16])
def test_the_plain_formulation_computes_the_same_map(lm, batch):
    cmap = a_map(lm)
    plain = PlainFormulation(cmap, batch)
    draw = torch.Generator().manual_seed(0)
    V, U = random_rows(20, lm.width, draw), random_rows(20, lm.width, draw)
    assert torch.allclose(plain.value(V), cmap.value(V), atol=1e-5)
    for ours, theirs in zip(cmap.value_and_vjp(V, U), plain.value_and_vjp(V, U), strict=True):
        assert torch.allclose(ours, theirs, atol=1e-5)
    assert torch.allclose(plain.jvp(V), cmap.jvp(V), atol=1e-5)
    assert torch.allclose(plain.hvp(U, V), cmap.hvp(U, V), atol=1e-4, rtol=1e-3)
    directions = random_rows(30, lm.width, torch.Generator().manual_seed(0))
    scale = calibrate(cmap, progress=False).scale
    assert plain.calibrate(directions)[0] == pytest.approx(scale, rel=0.03)
    assert lm.config._attn_implementation == "sdpa"  # given back


def test_a_map_that_does_not_read_the_stream_has_no_plain_formulation(lm):
    with pytest.raises(MelboError, match="this map reads attention.*--no-plain"):
        PlainFormulation(a_map(lm, read="attention"))


@pytest.mark.slow
def test_every_row_is_measured(lm):
    rows = list(measure_speed(a_map(lm), num_factors=4, repeats=2, progress=False))
    assert [row.what.split()[0].strip(",") for row in rows] == [
        "a",
        "the",
        "fit",
        "calibration",
        "jvp",
        "vjp",
        "hvp",
        "bilinear",
        "generation",
        "judging",
    ]
    for row in rows:
        assert len(row.seconds) == 2
        assert "not reached" not in row.what
        assert row.median > 0
        json.dumps(row.describe())
    assert rows[0].of_products > 0
    assert rows[0].versus["plain"] > 0
    assert set(rows[1].versus) == {"positions='all'"}
    assert set(rows[-2].versus) == {"unsteered", "one at a time"}
    assert set(rows[-1].versus) == {"one at a time"}
    assert rows[-2].of_products > 0
    assert rows[-1].of_products > 0


def test_operations_of_a_whole_model_are_those_that_torch_counts(lm):
    run, flops = products_of_model(lm, 5)
    with FlopCounterMode(display=False) as counter:
        run()
    assert counter.get_total_flops() == flops
    with FlopCounterMode(display=False) as counter, sdpa_kernel([SDPBackend.MATH]):
        lm.model(input_ids=torch.zeros(1, 5, dtype=torch.long), use_cache=False)
    assert flops < counter.get_total_flops() < 1.2 * flops  # attention comes on top


def test_a_measurement_is_a_line_of_text_and_of_a_table():
    row = SpeedRow("a sweep", [1.0, 3.0, 2.0], 4.0, 0.5, {"plain": 2.5})
    said = " ".join(row.line(2).split())
    assert said == "2 threads a sweep 2.000 s 50% of its products' rate plain × 2.5"
    plain = {**row.describe(), "versus": {"reference, 16 at a time": 2.5}}
    bare = SpeedRow("the same", [2.0]).describe()
    lines = speed_table([{"threads": {"1": [plain]}}, {"threads": {"2": [bare]}}]).splitlines()
    assert lines[2:] == [
        "| a sweep | 1 | 2 | 50% | plain, 16 at a time × 2.5 |",
        "| the same | 2 | 2 | – | – |",
    ]


def test_the_gpu_script_runs_dry(capsys):
    rows = gpu.main(dry_run=True)
    assert [row["dtype"] for row in rows] == ["bfloat16", "float32"]
    assert all(row["median_seconds"] > 0 and row["of_own_products"] > 0 for row in rows)
    assert "of square products" in capsys.readouterr().out
