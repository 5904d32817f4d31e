import os
import shutil
from functools import partial

import pytest
import torch
import torch._dynamo.utils
import torch._inductor.config
from cases import WIDTH, prompts, tiny_model
from functorch.compile import nop
from torch._dynamo.backends.common import aot_autograd
from toys import directions

from melbo import AdapterMap, CausalMap, Exponential, fit
from melbo.maps.model_map import ModelMap
from melbo.models.compiled import BlockCompiler
from melbo.models.replay import call_block

# torch looks at it on purpose, and hides the warning where warnings are not errors
pytestmark = pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")

COMPILER = next(
    (c for c in (os.environ.get("CXX"), "g++", "clang++", "c++") if c and shutil.which(c)), None
)


@pytest.fixture(autouse=True)
def compiler(monkeypatch):
    """A compiler that has compiled nothing, instead of the process's; no pool of processes."""
    fresh = BlockCompiler()
    monkeypatch.setattr(ModelMap, "_compiled", fresh)
    torch._dynamo.reset()
    with torch._inductor.config.patch(compile_threads=1):
        yield fresh
    torch._dynamo.reset()


@pytest.fixture
def traced_only(monkeypatch):
    """Makes graphs as ever and runs them as they are, which saves most of the time."""
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="eager"))


@pytest.fixture
def called(monkeypatch):
    """Blocks that were to run compiled, call after call; they run as they are."""
    seen = []

    def note(block, *args):
        seen.append(block)
        return call_block(block, *args)

    monkeypatch.setattr(torch, "compile", lambda function, **settings: note)
    return seen


@pytest.fixture(scope="module")
def lm():
    return tiny_model("llama", torch.float32)


def rows(k, seed=1):
    return directions(k, WIDTH, seed, torch.float32)


def vjps(cmap, k=4):
    return cmap.value_and_vjp(rows(k), rows(k, seed=2))


def assert_close(got, want):
    for ours, theirs in zip(got, want, strict=True):
        assert (ours - theirs).norm() <= 1e-4 * theirs.norm()


def graphs():
    return torch._dynamo.utils.counters["stats"]["unique_graphs"]


@pytest.mark.slow
@pytest.mark.skipif(COMPILER is None, reason="no C++ compiler")
def test_compiled_passes_equal_plain_ones_in_every_shape(lm, compiler):
    before = graphs()
    for length, most, k in ((9, 5, 5), (9, 4, 7), (12, 3, 6), (7, 20, 17)):
        compiled, plain = (
            CausalMap(lm, prompts((length,)), 1, 3, tokens_per_pass=most * length, compile=c)
            for c in (True, False)
        )
        assert_close(vjps(compiled, k), vjps(plain, k))
        assert not compiler.failed
        # one block is compiled, the last runs on the last tokens only
        assert graphs() - before == 1


@pytest.mark.parametrize("name", ["gpt2", "gemma2", "falcon_alibi"])
def test_traced_passes_over_padded_prompts_equal_plain_ones(name, traced_only, compiler):
    lm = tiny_model(name, torch.float32)
    for lengths, k in (((9, 6), 3), ((5, 11), 4)):
        compiled, plain = (
            CausalMap(lm, prompts(lengths), 1, 3, prompt_batch=2, tokens_per_pass=99, compile=c)
            for c in (True, False)
        )
        assert_close(vjps(compiled, k), vjps(plain, k))
        assert not compiler.failed


@pytest.fixture
def graphs_of(lm, traced_only, compiler):
    """Counts the graphs made for some shapes, rows of a pass and tokens of a prompt, in a row."""

    def count(*shapes, source=1, target=3):
        before = graphs()
        for k, length in shapes:
            settings = {"tokens_per_pass": k * length, "compile": True}
            vjps(CausalMap(lm, prompts((length,)), source, target, **settings), k)
        assert not compiler.failed
        return graphs() - before

    return count


@pytest.mark.parametrize(
    "shape",
    [(4, 9), (9, 9), (8, 9)],
    ids=["all different", "as many rows as tokens", "as many rows as a head is wide"],
)
def test_one_graph_does_for_every_shape(graphs_of, shape):
    assert graphs_of(shape, (7, 9), (5, 12), (12, 12), (3, 6), (8, 5)) == 1


def test_one_graph_does_for_every_block(graphs_of):
    assert graphs_of((4, 9), source=0, target=4) == 1


def test_a_single_row_takes_no_graph_of_its_own(graphs_of):
    assert graphs_of((4, 9), (1, 9), (1, 7)) == 1


def test_measuring_the_memory_compiles_nothing(lm, traced_only):
    before = graphs()
    CausalMap(lm, prompts((9,)), 1, 3, compile=True)
    assert graphs() == before


def test_what_does_not_compile_runs_plain_and_says_so_once(lm, monkeypatch):
    tried = []

    def refuse(function, **settings):
        tried.append(1)
        raise RuntimeError("no compiler\n  was found")

    monkeypatch.setattr(torch, "compile", refuse)
    compiled, plain = (
        CausalMap(lm, prompts((9, 7)), 0, 4, tokens_per_pass=18, compile=c) for c in (True, False)
    )
    says = r"blocks run uncompiled \(RuntimeError: no compiler was found\); compile=False"
    with pytest.warns(UserWarning, match=says) as said:
        got = vjps(compiled)
    assert len(said) == len(tried) == 1
    again = vjps(compiled)  # a second warning would be an error
    other = vjps(CausalMap(lm, prompts((9, 7)), 0, 4, tokens_per_pass=18, compile=True))
    for ours in (got, again, other):
        assert all(torch.equal(a, b) for a, b in zip(ours, vjps(plain), strict=True))
    assert len(tried) == 1


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:blocks run uncompiled")
def test_a_backward_pass_that_does_not_compile_runs_plain(lm, monkeypatch, compiler):
    def refuse(*args):
        raise RuntimeError("no compiler for the backward pass")

    backend = aot_autograd(fw_compiler=nop, bw_compiler=refuse)
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=backend))
    compiled, plain = (
        CausalMap(lm, prompts((9,)), 1, 3, tokens_per_pass=36, compile=c) for c in (True, False)
    )
    assert_close(vjps(compiled), vjps(plain))
    assert compiler.failed


def test_want_of_memory_is_no_reason_to_stop_compiling(lm, monkeypatch, compiler):
    def full(*args):
        raise torch.OutOfMemoryError("out of memory")

    monkeypatch.setattr(torch, "compile", lambda function, **settings: full)
    with pytest.raises(torch.OutOfMemoryError):
        vjps(CausalMap(lm, prompts((9,)), 1, 3, tokens_per_pass=36, compile=True))
    assert not compiler.failed


def test_compiling_begins_once_so_much_work_is_done(lm, called):
    cmap = CausalMap(lm, prompts((9,)), 1, 3, tokens_per_pass=36)
    weights = sum(p.numel() for block in lm.blocks[1:3] for p in block.parameters())
    # five halves of the work on four rows of nine tokens
    cmap._worth_compiling = 2.5 * 4 * weights * 36
    assert vjps(cmap)[1].norm() > 0
    cmap.value(rows(50))  # no backward pass follows, nothing is counted
    cmap.jvp(rows(4))
    vjps(cmap)
    assert not called
    vjps(cmap)
    assert called == [lm.blocks[1]]  # the last block runs on the last tokens only, as it is
    cmap.value(rows(4))
    assert len(called) == 1
    vjps(cmap, 8)
    assert len(called) == 3
    patient = CausalMap(lm, prompts((9,)), 1, 3, tokens_per_pass=36, compile=False)
    vjps(patient, 40)
    assert len(called) == 3


def test_compile_is_for_passes_with_a_backward_pass_only(lm, called):
    cmap = CausalMap(lm, prompts((9, 7)), 1, 3, tokens_per_pass=36, compile=True)
    V, U = rows(2), rows(2, seed=2)
    for result in (cmap.value(V), cmap.vjp(U), cmap.jvp(V), cmap.hvp(U, V), cmap.bilinear(V, V)):
        assert result.isfinite().all()
    assert not called
    cmap._shares_zero = False
    assert cmap.vjp(U).isfinite().all()
    assert not called
    fit(cmap, Exponential(2, 1.0, max_steps=1), progress=False)
    assert set(called) == {lm.blocks[1]}
    called.clear()
    cmap.value_and_vjp(V, lambda value, rows: value)
    assert called == [lm.blocks[1]] * 2


@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_edited_blocks_are_compiled_with_their_edits(name, traced_only, compiler):
    lm = tiny_model(name, torch.float32)
    compiled, plain = (AdapterMap(lm, prompts((9, 6)), (0, 2), 3, compile=c) for c in (True, False))
    V = compiled.unit(directions(5, compiled.d_source, 1, torch.float32))
    U = rows(5, seed=2)
    before = graphs()
    for scale in (1.0, 2.0):
        assert_close(compiled.value_and_vjp(scale * V, U), plain.value_and_vjp(scale * V, U))
    # the first block enters with a single row, the last runs on the last tokens only
    assert graphs() - before == 1
    assert not compiler.failed
    assert_close([compiled.value(V)], [plain.value(V)])
