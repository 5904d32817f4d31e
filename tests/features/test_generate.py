import json
import math
import sys

import pytest
import torch
from cases import tiny_model
from toys import directions

from melbo import FeatureSet, MelboError, Prompts, generate, steer
from melbo.models.edits import EditSequence

generation = sys.modules["melbo.features.generate"]  # the name in the package is the function's


@pytest.fixture(scope="module")
def lm():
    return tiny_model("llama")


@pytest.fixture(scope="module")
def bank(lm):
    return FeatureSet(
        directions(3, lm.width),
        directions(3, lm.width, 1),
        torch.ones(3, dtype=torch.float64),
        4.0,
        1,
        3,
    )


@pytest.fixture(scope="module")
def nine(lm):
    """Enough features that the rows of a prompt share it."""
    return FeatureSet(
        directions(9, lm.width),
        directions(9, lm.width, 1),
        torch.ones(9, dtype=torch.float64),
        4.0,
        1,
        3,
    )


@pytest.fixture(scope="module")
def some(lm):
    return Prompts.text(lm, ["Tell me how to bake a cake", "dog", "red or blue ?"])


def by_hand(lm, tokens, n):
    """Greedy, without a cache, one token at a time."""
    ids = list(tokens)
    for _ in range(n):
        ids.append(lm.model(torch.tensor([ids]), use_cache=False).logits[0, -1].argmax().item())
        if ids[-1] in lm.eos:
            break
    return tuple(ids[len(tokens) :])


@pytest.mark.parametrize("batch_size", [1, 4, 64])
def test_every_row_equals_one_at_a_time(lm, bank, some, batch_size):
    control = bank.random(2, torch.Generator().manual_seed(9))
    table = generate(
        lm,
        some,
        bank,
        control,
        max_new_tokens=6,
        strength=0.5,
        batch_size=batch_size,
        progress=False,
    )
    assert len(table) == 3 * (1 + 3 + 2)
    for c in table:
        tokens = some.tokens[c.prompt]
        if c.kind == "unsteered":
            expected = by_hand(lm, tokens, 6)
        else:
            v = bank.V[c.feature] if c.kind == "feature" else control.V[c.feature]
            alone = FeatureSet(v[None], v[None], torch.ones(1, dtype=v.dtype), 4.0, 1, 3)
            with steer(lm, alone, strength=0.5):
                expected = by_hand(lm, tokens, 6)
        assert c.tokens == expected
        assert c.prompt_text == some.texts[c.prompt]
        assert c.text == lm.tokenizer.decode(c.tokens, skip_special_tokens=True)


def test_table_finds_its_rows(lm, bank, some):
    table = generate(lm, some, bank, max_new_tokens=2, progress=False)
    assert [c.prompt for c in table.of("feature", 1)] == [0, 1, 2]
    assert [c.prompt for c in table.of("unsteered")] == [0, 1, 2]
    assert table.of("control", 0) == []


def test_first_logits_are_those_of_the_steered_model(lm, bank, some):
    seen = {}
    generate(
        lm,
        some,
        bank,
        max_new_tokens=3,
        batch_size=2,
        first_logits=lambda row, logits: seen.update({row: logits}),
        progress=False,
    )
    assert sorted(seen) == list(range(12))
    with steer(lm, bank[1]):
        logits = lm.model(torch.tensor([some.tokens[2]])).logits[0, -1]
    assert torch.allclose(seen[2 * 4 + 2], logits.float(), atol=1e-4)


def test_strengths_are_one_or_one_for_each(lm, bank, some):
    with pytest.raises(
        MelboError, match=r"shape \[2\]: expected one for all, or one for each of 3"
    ):
        generate(lm, some, bank, strength=torch.ones(2), progress=False)


def test_unsteered_replies_can_be_left_out(lm, bank, some):
    strengths = torch.tensor([0.5, 1.0, 2.0])
    whole, alone = (
        generate(
            lm, some, bank, max_new_tokens=3, strength=strengths, unsteered=wanted, progress=False
        )
        for wanted in (True, False)
    )
    assert list(alone) == [c for c in whole if c.kind == "feature"]


def test_memory_running_out_halves_the_batch(lm, bank, some, monkeypatch):
    whole = generate(lm, some, bank, max_new_tokens=3, progress=False)
    real, sizes = generation._decode_batch, []

    def limited(lm, jobs, *rest):
        sizes.append(len(jobs))
        if len(jobs) > 3:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return real(lm, jobs, *rest)

    monkeypatch.setattr(generation, "_decode_batch", limited)
    assert generate(lm, some, bank, max_new_tokens=3, batch_size=8, progress=False) == whole
    assert sizes[:3] == [6, 3, 3]
    monkeypatch.setattr(
        generation, "_decode_batch", lambda *a: (_ for _ in ()).throw(torch.OutOfMemoryError("out"))
    )
    with pytest.raises(MelboError, match="out of memory on a single row"):
        generate(lm, some, bank, max_new_tokens=3, progress=False)


def test_other_failures_are_not_mistaken_for_memory(lm, bank, some, monkeypatch):
    monkeypatch.setattr(
        generation,
        "_decode_batch",
        lambda *a: (_ for _ in ()).throw(RuntimeError("shape mismatch")),
    )
    with pytest.raises(RuntimeError, match="shape mismatch"):
        generate(lm, some, bank, max_new_tokens=3, progress=False)


def test_a_checkpoints_own_penalties_are_set_aside_and_put_back(lm, bank, some):
    plain = generate(lm, some, bank, max_new_tokens=6, progress=False)
    config = lm.model.generation_config
    config.repetition_penalty = 50.0
    try:
        assert generate(lm, some, bank, max_new_tokens=6, progress=False) == plain
        assert lm.model.generation_config is config
    finally:
        config.repetition_penalty = None


def test_save_writes_a_line_a_completion(lm, bank, some, tmp_path):
    table = generate(lm, some, bank, max_new_tokens=2, progress=False)
    table.save(tmp_path / "completions.jsonl")
    rows = [
        json.loads(line)
        for line in (tmp_path / "completions.jsonl").read_text().split("\n")
        if line
    ]
    assert [(r["kind"], r["feature"], r["text"]) for r in rows] == [
        (c.kind, c.feature, c.text) for c in table
    ]


@pytest.mark.parametrize("batch_size", [3, 10, 64])
def test_replies_are_the_same_without_sharing_and_in_legs_of_any_length(
    lm, nine, some, batch_size, monkeypatch
):
    monkeypatch.setattr(generation, "can_read_once", lambda *a: False)
    monkeypatch.setattr(generation, "_LEG", 100)
    plain = generate(lm, some, nine, max_new_tokens=9, progress=False)
    monkeypatch.undo()
    for leg in (1, 4):
        monkeypatch.setattr(generation, "_LEG", leg)
        assert (
            generate(lm, some, nine, max_new_tokens=9, batch_size=batch_size, progress=False)
            == plain
        )


def test_finished_rows_make_room(lm, nine, some, monkeypatch):
    plain = generate(lm, some[0], nine, max_new_tokens=12, progress=False)
    third = {c.feature: c.tokens[2] for c in plain}
    ended = third[4]  # what one feature says third ends a reply from now on
    monkeypatch.setattr(type(lm), "eos", property(lambda self: [ended]))
    monkeypatch.setattr(generation, "_LEG", 4)
    sizes = []
    continued = generation.continued
    monkeypatch.setattr(
        generation,
        "continued",
        lambda lm, ids, *a, **k: sizes.append(len(ids)) or continued(lm, ids, *a, **k),
    )
    short = generate(lm, some[0], nine, max_new_tokens=12, progress=False)
    for long, cut in zip(plain, short, strict=True):
        end = long.tokens.index(ended) + 1 if ended in long.tokens else 12
        assert cut.tokens == long.tokens[:end]
    assert sizes[0] >= sizes[-1]
    assert sizes[-1] < 10


@pytest.mark.parametrize(
    "together", [True, False]
)  # rows of a prompt read it once, or each by itself
def test_drawn_replies_are_as_likely_as_the_model_says(lm, some, together, monkeypatch):
    monkeypatch.setattr(generation, "_PASS", 0 if together else math.inf)
    rows, prompt = 4000, some.tokens[0]
    with torch.random.fork_rng():
        torch.manual_seed(0)
        found = generation.decode(
            lm,
            [prompt] * rows,
            EditSequence(()),
            2,
            batch_size=2 * rows,
            progress=False,
            temperature=0.5,
        )
    logits = lm.model(torch.tensor([prompt])).logits[0, -1]
    wanted = (logits / 0.5).softmax(-1)
    seen = torch.bincount(torch.tensor([reply[0] for reply in found]), minlength=len(wanted)) / rows
    assert (seen - wanted).abs().max() < 5 * (wanted.max() / rows) ** 0.5
    first = max(range(len(wanted)), key=lambda i: wanted[i])
    after = (lm.model(torch.tensor([[*prompt, first]])).logits[0, -1] / 0.5).softmax(-1)
    second = torch.tensor([reply[1] for reply in found if len(reply) == 2 and reply[0] == first])
    seen = torch.bincount(second, minlength=len(after)) / len(second)
    assert (seen - after).abs().max() < 5 * (after.max() / len(second)) ** 0.5


def test_next_to_no_temperature_is_greedy(lm, some):
    asked = [prompt for prompt in some.tokens for _ in range(5)]
    plain, drawn = (
        generation.decode(lm, asked, EditSequence(()), 6, progress=False, temperature=t)
        for t in (0.0, 1e-6)
    )
    assert plain == drawn


def test_rows_of_a_prompt_get_batches_of_their_own_where_they_are_many_and_the_rest_go_by_length():
    prompts = [(1, 2, 3)] * 5 + [(1,), (1, 2), (3,)]
    assert generation._groups(prompts, head=0, steps=1, batch_size=5) == [
        [0, 1, 2, 3, 4],
        [5, 7, 6],
    ]
    assert generation._groups(prompts[5:], head=0, steps=1, batch_size=5) == [[0, 2, 1]]
    long = [(1,) * 100] * 5 + prompts
    assert generation._groups(long, head=0, steps=8, batch_size=10) == [
        [0, 1, 2, 3, 4],
        [10, 12, 11, 5, 6, 7, 8, 9],
    ]
    assert generation._groups(long, head=96, steps=8, batch_size=10) == [
        [10, 12, 11, 5, 6, 7, 8, 9, 0, 1, 2, 3, 4]
    ]


def test_the_head_gets_its_input_in_one_piece(lm, nine, some):
    """A view costs a CPU a copy of the matrix for every row (see `LanguageModel.contiguous_head`)."""
    head, seen = lm.model.get_output_embeddings(), []
    with head.register_forward_hook(lambda _, args, __: seen.append(args[0].is_contiguous())):
        list(generate(lm, some, nine, max_new_tokens=2, progress=False))
    assert len(seen) >= 2
    assert all(seen)
    assert not head._forward_pre_hooks
