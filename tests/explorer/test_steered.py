from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from threading import Event, Lock

import pytest
import torch
from cases import tiny_model
from explored import model_with_room
from toys import directions

import melbo
from melbo import FeatureSet, MelboError, Prompts, generate, steer
from melbo.explorer.steered import Models, SteeredModel

ASKED = [{"role": "user", "content": "Tell me how to bake a cake"}]


def features_of(lm, sha=None):
    V, U = directions(3, lm.width), directions(3, lm.width, 1)
    prompts = Prompts(("yes",), ((1, 2, 3),), "chat", None)
    model = {} if sha is None else {"model": {"name": lm.name, "sha256": sha}}
    meta = {"map": {"prompts": prompts.describe(), **model}}
    return FeatureSet(V, U, torch.ones(3, dtype=torch.float64), 4.0, 1, 3, meta)


@pytest.fixture(scope="module")
def model():
    lm = tiny_model("llama")
    features = features_of(lm)
    return SteeredModel(lm, features, features.provenance.prompts, Lock(), Event())


@pytest.fixture(scope="module")
def long(tmp_path_factory):
    """A model that replies for as long as it may."""
    lm = melbo.load(model_with_room(tmp_path_factory.mktemp("model")), dtype="float32")
    features = features_of(lm)
    return SteeredModel(lm, features, features.provenance.prompts, Lock(), Event())


def plain(lm, n, *steering):
    """Greedy reply, one token at a time, without a cache."""
    told = lm.tokenizer.apply_chat_template(ASKED, tokenize=True, add_generation_prompt=True)
    ids = told["input_ids"]
    start = len(ids)
    for _ in range(n):
        ids.append(lm.model(torch.tensor([ids]), use_cache=False).logits[0, -1].argmax().item())
        if ids[-1] in lm.eos:
            break
    return lm.tokenizer.decode(ids[start:], skip_special_tokens=True)


@pytest.mark.parametrize(
    "mix", [{}, {1: 1.0}, {2: -0.5}, {0: 1.0, 2: -2.0}, {0: 0.0}], ids=lambda mix: str(mix)
)
def test_a_reply_is_the_greedy_one_of_the_model_under_all_its_features(model, mix):
    lm, features = model.lm, model.features
    n = 8
    added = sum((s * features.scale * features.V[i] for i, s in mix.items()), torch.zeros(32))
    hook = lm.blocks[1].register_forward_pre_hook(lambda block, args: (args[0] + added, *args[1:]))
    try:
        expected = plain(lm, n)
    finally:
        hook.remove()
    assert model.reply(ASKED, mix, n) == expected


def test_mixes_differ_here_and_agree_with_generate(model):
    replies = {str(mix): model.reply(ASKED, mix, 8) for mix in ({}, {1: 1.0}, {0: 1.0, 2: -2.0})}
    assert len(set(replies.values())) == 3
    prompts = Prompts.chat(model.lm, [ASKED[0]["content"]])
    table = generate(model.lm, prompts, model.features, max_new_tokens=8, progress=False)
    assert replies["{1: 1.0}"] == table.of("feature", 1)[0].text


def test_the_text_comes_token_by_token(model):
    seen = []
    said = replace(model, pause=0.0).reply(ASKED, {1: 1.0}, 8, on_text=seen.append)
    assert seen[-1] == said
    assert len(seen) == 8
    assert all(after.startswith(before) for before, after in pairwise(seen))


def test_a_text_is_not_told_more_often_than_it_can_be_read(model):
    seen = []
    replace(model, pause=1000.0).reply(ASKED, {1: 1.0}, 8, on_text=seen.append)
    assert len(seen) == 1


def test_a_drawn_reply_is_the_same_for_a_seed(model):
    drawn = [model.reply(ASKED, {}, 8, temperature=2.0, seed=seed) for seed in (1, 1, 2)]
    assert drawn[0] == drawn[1] != drawn[2]


def test_sessions_at_once_do_not_mix_their_steering(long):
    mixes = [{}, {0: 1.0}, {1: 1.0}, {2: 1.0}, {0: -1.0}, {1: 2.0, 2: -1.0}]
    alone = [long.reply(ASKED, mix, 24) for mix in mixes]
    assert len(set(alone)) > 3
    with ThreadPoolExecutor(len(mixes)) as pool:
        together = list(pool.map(lambda mix: long.reply(ASKED, mix, 24), mixes * 3))
    assert together == alone * 3


def test_a_stopped_reply_ends_and_leaves_the_model_as_it_was(long):
    before = long.reply(ASKED, {}, 8)
    stop, seen = Event(), []

    def on_text(text):
        seen.append(text)
        if len(seen) == 3:
            stop.set()

    eager = replace(long, pause=0.0)
    assert eager.reply(ASKED, {1: 1.0}, 2000, on_text=on_text, stop=stop) is None
    assert len(seen) <= 4  # the token that was being computed may still come
    assert not long.turn.locked()
    assert long.reply(ASKED, {}, 8) == before


def test_one_that_waits_can_be_stopped_too(long):
    stop = Event()
    with long.turn, ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(long.reply, ASKED, {}, 8, stop=stop)
        stop.set()
        assert waiting.result(timeout=10) is None


def test_a_fault_ends_neither_the_model_nor_the_turn(model):
    expected = model.reply(ASKED, {1: 1.0}, 4)
    with pytest.raises(MelboError, match="reads at most 64"):
        model.reply(ASKED, {1: 1.0}, 4000)
    with pytest.raises(MelboError, match="strength is nan"):
        model.reply(ASKED, {1: float("nan")}, 4)
    with pytest.raises(MelboError, match="temperature is -1"):
        model.reply(ASKED, {1: 1.0}, 4, temperature=-1)
    assert model.reply(ASKED, {1: 1.0}, 4) == expected


def test_runs_of_one_model_share_it_and_its_turn(tmp_path):
    lm, loaded = tiny_model("llama"), []
    for name in ("one", "two"):
        features_of(lm, lm.fingerprint).save(tmp_path / name)
    features_of(lm, "another").save(tmp_path / "other")

    def load(folder):
        loaded.append(folder)
        return lm

    models = Models(load)
    one, two, again = (models.of(tmp_path / name) for name in ("one", "two", "one"))
    assert one.lm is two.lm is again.lm
    assert one.turn is two.turn is again.turn
    assert loaded == [tmp_path / "one"]
    with pytest.raises(MelboError, match="fitted on"):
        models.of(tmp_path / "other")


def test_a_model_that_cannot_be_loaded_is_asked_for_again(tmp_path):
    lm = tiny_model("llama")
    features_of(lm, lm.fingerprint).save(tmp_path)
    answers = iter([MelboError("not there"), lm])

    def load(folder: Path):
        answer = next(answers)
        if isinstance(answer, MelboError):
            raise answer
        return answer

    models = Models(load)
    with pytest.raises(MelboError, match="not there"):
        models.of(tmp_path)
    assert models.of(tmp_path).lm is lm


def test_closing_ends_all_replies(tmp_path):
    lm = tiny_model("llama")
    features_of(lm, lm.fingerprint).save(tmp_path)
    models = Models(lambda folder: lm)
    model = models.of(tmp_path)
    assert model.reply(ASKED, {}, 4) is not None
    models.close()
    assert model.reply(ASKED, {}, 4) is None


def test_steering_by_hand_is_the_same(model):
    with steer(model.lm, model.features[1], strength=0.5):
        assert plain(model.lm, 6) == model.reply(ASKED, {1: 0.5}, 6)
