"""Options of replies and of prompts: temperature, seed, where, template, arguments, prefix."""

import io
import json
import shutil

import pytest
import torch
from command_line import PROMPT, SHORT, one_line

import melbo as library
from melbo import FeatureSet, Prompts, generate
from melbo.cli.chat import Chat
from melbo.cli.terminal import print_json

SAMPLE = ("sample", "run", "--prompt", "dog", "--max-new-tokens", 6, "--json")
RANDOM = ("--method", "random", "-m", 2, "--scale", 4)


def texts(ended):
    assert ended.code == 0, ended.err
    return [row["text"] for row in ended.rows]


def test_a_seed_says_which_replies_are_drawn(melbo):
    drawn = [texts(melbo(*SAMPLE, "--temperature", 2, "--seed", seed)) for seed in (0, 1, 2, 0)]
    assert drawn[0] == drawn[3]
    assert len({tuple(row) for row in drawn}) == 3
    assert texts(melbo(*SAMPLE, "--temperature", 0, "--seed", 5)) == texts(melbo(*SAMPLE))
    assert texts(melbo(*SAMPLE, "--temperature", 1e-4)) == texts(melbo(*SAMPLE))


@pytest.mark.parametrize("where", ["all", "prompt", "generated"])
def test_where_reaches_the_edit_in_sample_and_chat(melbo, home, where):
    lm = library.load(str(home / "tiny"))
    features = FeatureSet.load(home / "run", lm)
    prompts = Prompts.chat(lm, ["dog"])
    table = generate(lm, prompts, features, max_new_tokens=6, where=where, progress=False)
    assert texts(melbo(*SAMPLE, "--where", where)) == [row.text for row in table]
    said = melbo(*SAMPLE, "--where", where).rows
    assert {(row["where"], row["temperature"]) for row in said} == {(where, 0.0)}
    chat = Chat(lm, features, 2, 1.0, 6, where)
    assert chat.reply("dog") == table.of("feature", 2)[0].text


def test_the_places_differ_here(melbo):
    found = {tuple(texts(melbo(*SAMPLE, "--where", w))) for w in ("all", "prompt", "generated")}
    assert len(found) == 3


@pytest.mark.parametrize("command", ["sample", "chat"])
@pytest.mark.parametrize("temperature", ["-1", "nan", "inf"])
def test_temperatures_that_mean_nothing_are_refused(refuses, command, temperature):
    prompt = ("--prompt", "dog") if command == "sample" else ()
    said = refuses(command, "run", *prompt, "--temperature", temperature, stdin="dog\n")
    assert "temperature is" in said


@pytest.mark.parametrize("command", ["sample", "chat"])
def test_a_place_at_which_features_do_not_act_is_refused(melbo, tmp_path, command):
    pair = ("--method", "sara", "--plus", "yes", "--minus", "no", "--out", tmp_path / "pair")
    assert melbo("contrast", "tiny", *pair).code == 0
    prompt = ("--prompt", "dog") if command == "sample" else ()
    ended = melbo(command, tmp_path / "pair", *prompt, "--where", "prompt", stdin="/quit\n")
    assert "sara says itself" in ended.err
    assert ended.code == 2


def test_a_chat_draws_by_its_seed(melbo):
    def said(seed):
        how = ("--temperature", 3, "--seed", seed, "--max-new-tokens", 8)
        return melbo("chat", "run", *how, stdin="dog\n/quit\n").out

    assert said(1) == said(1) != said(2)


@pytest.fixture
def thinking(home, tmp_path):
    """A checkpoint with two templates, one of which reads an argument."""
    folder = shutil.copytree(home / "tiny", tmp_path / "thinking")
    plain = (folder / "chat_template.jinja").read_text()
    (folder / "additional_chat_templates").mkdir()
    other = plain + "{% if mood %} {{ mood }} {% endif %}{% if not fast %} Sure{% endif %}"
    (folder / "additional_chat_templates" / "other.jinja").write_text(other)
    return folder


def test_template_arguments_and_prefix_reach_the_prompts_and_stay_with_the_run(
    melbo, thinking, tmp_path
):
    run = tmp_path / "run"
    how = ("--template", "other", "--template-arg", "fast=true", "--template-arg", "mood=dog")
    argv = ("fit", thinking, "--prompt", PROMPT, *RANDOM, *how, "--prefix", "one two")
    ended = melbo(*argv, "--out", run)
    assert ended.code == 0, ended.err
    kept = json.loads((run / "run.json").read_text())["map"]["prompts"]
    arguments = {"fast": True, "mood": "dog"}
    assert (kept["template"], kept["prefix"]) == ("other", "one two")
    assert kept["template_args"] == arguments
    lm = library.load(str(thinking))
    expected = Prompts.chat(lm, [PROMPT], None, "other", arguments, "one two")
    assert kept["tokens"] == [list(row) for row in expected.tokens]
    assert lm.tokenizer.decode(kept["tokens"][0]).endswith("dog one two")
    table = generate(
        lm,
        Prompts.chat(lm, ["cat"], None, "other", arguments, "one two"),
        FeatureSet.load(run, lm),
        max_new_tokens=3,
        progress=False,
    )
    argv = ("sample", run, "--prompt", "cat", *SHORT, "--json")
    assert texts(melbo(*argv)) == [row.text for row in table]
    said = melbo("chat", run, *SHORT, stdin="cat\n/quit\n").out
    told = said.split("you: ")[1].split("[")[0]
    assert told.strip() == f"one two{table.of('unsteered')[0].text}".strip()


@pytest.mark.parametrize(
    ("more", "says"),
    [
        (("--template-arg", "fast"), "expected KEY=VALUE"),
        (("--template-arg", "=1"), "expected KEY=VALUE"),
        (("--template-arg", "a=1", "--template-arg", "a=2"), "got a twice"),
        (("--template-arg", "nonsense=1"), "reads no argument 'nonsense'"),
        (("--template", "nonsense"), "nonsense"),
        (("--text", "--prefix", "Sure"), "--prefix needs a chat template"),
        (("--text", "--template-arg", "a=1"), "--template-arg needs a chat template"),
        (("--text", "--system", "yes", "--template", "b"), "--system and --template needs"),
    ],
    ids=str,
)
def test_ways_to_read_prompts_that_cannot_work(refuses, more, says):
    assert says in refuses("fit", "tiny", "--prompt", PROMPT, "--out", "new", *more)


def test_bits_reach_the_loader_and_are_refused_by_it_where_they_cannot_be(refuses):
    argv = ("calibrate", "tiny", "--prompt", PROMPT)
    assert "is not one of" in refuses(*argv, "--bits", 5)
    if not library.models.loading.load.importlib.util.find_spec("bitsandbytes"):
        assert "weights of 4 bits need bitsandbytes" in refuses(*argv, "--bits", 4)


def test_a_run_remembers_its_bits(melbo, run):
    kept = json.loads((run / "run.json").read_text())
    kept["map"]["model"]["bits"] = 8
    (run / "run.json").write_text(json.dumps(kept))
    if not library.models.loading.load.importlib.util.find_spec("bitsandbytes"):
        assert "weights of 8 bits" in one_line(melbo("sample", run, "--prompt", "dog"))


def test_json_of_a_stream_without_an_encoding(monkeypatch):
    stream = io.StringIO()
    monkeypatch.setattr("sys.stdout", stream)
    print_json({"a": "é"})
    assert json.loads(stream.getvalue()) == {"a": "é"}


@pytest.mark.parametrize("temperature", [0.5, 1.0, 3.0])
def test_first_tokens_are_drawn_from_the_tempered_distribution(home, temperature):
    lm = library.load(str(home / "tiny"), dtype="float32")
    features = FeatureSet.load(home / "run", lm)[:1]
    one = Prompts.text(lm, ["dog"])
    many = Prompts(one.texts * 4000, one.tokens * 4000)
    torch.manual_seed(0)
    table = generate(
        lm,
        many,
        features,
        max_new_tokens=1,
        temperature=temperature,
        unsteered=False,
        progress=False,
        batch_size=4000,
    )
    counts = torch.bincount(torch.tensor([row.tokens[0] for row in table]), minlength=96) / 4000
    with library.steer(lm, features), torch.no_grad():
        logits = lm.model(torch.tensor([one.tokens[0]])).logits[0, -1]
    assert (counts - (logits / temperature).softmax(-1)).abs().max() < 0.03
