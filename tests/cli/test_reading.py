"""Commands that use a run read prompts as the fit did, or as their own options say."""

import re
import shutil

import pytest
from cases import tiny_tokenizer
from command_line import PROMPT, SHORT, one_line

from melbo import FeatureSet, Prompts, ablate, generate, load
from melbo.models.decoding.decode import decode
from melbo.models.edits import EditSequence

TEMPLATE = (
    "{{ bos_token }}{% if loud %}red red{% endif %}{% for m in messages %}<|{{ m['role'] }}|> "
    "{{ m['content'] }} </s> {% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
DROPS = TEMPLATE.replace("%}<|{{", "if m['role'] != 'system' %}<|{{", 1)
#: Options, and what `Prompts.chat` is given for them; all are of a tokenizer with templates.
ASKED = {
    "system": (("--system", "he is a dog"), {"system": "he is a dog"}),
    "prefix": (("--prefix", "Sure"), {"prefix": "Sure"}),
    "argument": (("--template-arg", "loud=true"), {"template_args": {"loud": True}}),
    "template": (("--template", "other"), {"template": "other"}),
    "all": (
        ("--system", "yes", "--prefix", "Sorry", "--template", "default"),
        {"system": "yes", "prefix": "Sorry", "template": "default"},
    ),
}


@pytest.fixture(scope="module")
def spoken(home, tmp_path_factory):
    """The checkpoint ``tiny`` with several chat templates."""
    folder = shutil.copytree(home / "tiny", tmp_path_factory.mktemp("spoken") / "model")
    (folder / "chat_template.jinja").unlink()
    tokenizer = tiny_tokenizer()
    other = TEMPLATE.replace("<|assistant|>", "blue <|assistant|>")
    tokenizer.chat_template = {"default": TEMPLATE, "other": other, "drops": DROPS}
    tokenizer.save_pretrained(folder)
    return str(folder)


def replies(lm, prompts):
    found = decode(lm, prompts.tokens, EditSequence(()), 3, progress=False)
    return list(lm.tokenizer.batch_decode(found, skip_special_tokens=True))


def read(lm, texts, how):
    return Prompts.text(lm, texts) if how is None else Prompts.chat(lm, texts, **how)


CASES = {**ASKED, "text": (("--text",), None), "fit": ((), {})}


@pytest.mark.parametrize(("options", "how"), CASES.values(), ids=CASES)
def test_sample_reads_prompts_as_it_is_told(melbo, home, spoken, options, how):
    lm = load(spoken)
    features = FeatureSet.load(home / "run", lm)[[1]]
    table = generate(lm, read(lm, ["dog", PROMPT], how), features, max_new_tokens=3, progress=False)
    argv = ("--model", spoken, "--prompt", "dog", "--prompt", PROMPT, "--feature", 1, *SHORT)
    ended = melbo("sample", "run", *argv, *options, "--json")
    assert ended.code == 0, ended.err
    assert [row["text"] for row in ended.rows] == [reply.text for reply in table]


@pytest.mark.parametrize(("options", "how"), CASES.values(), ids=CASES)
def test_ablate_reads_prompts_as_it_is_told(melbo, home, spoken, options, how):
    lm = load(spoken)
    prompts = read(lm, ["dog"], how)
    plain = replies(lm, prompts)
    with ablate(lm, FeatureSet.load(home / "run", lm).V[[1]]):
        ablated = replies(lm, prompts)
    argv = ("--model", spoken, "--prompt", "dog", "--feature", 1, *SHORT, "--json")
    [row] = melbo("ablate", "run", *argv, *options).rows
    assert [row["unsteered"], row["ablated"]] == [*plain, *ablated]


@pytest.mark.parametrize(("options", "how"), ASKED.values(), ids=ASKED)
def test_chat_reads_turns_as_it_is_told(melbo, spoken, options, how):
    lm = load(spoken)
    start = how.get("prefix", "")
    first = start + replies(lm, Prompts.chat(lm, ["dog"], **how))[0]
    user, assistant = (
        {"role": r, "content": c} for r, c in (("user", "dog"), ("assistant", first))
    )
    turns = [user, assistant, {"role": "user", "content": "cat"}]
    second = start + replies(lm, Prompts.chat(lm, [turns], **how))[0]
    ended = melbo("chat", "run", "--model", spoken, *SHORT, *options, stdin="dog\ncat\n")
    assert ended.code == 0, ended.err
    assert ended.out == f"[unsteered] you: {first}\n[unsteered] you: {second}\n[unsteered] you: \n"


def test_the_options_make_a_difference_here(spoken):
    lm = load(spoken)
    rows = {read(lm, ["dog"], how).tokens for _, how in CASES.values()}
    assert len(rows) == len(CASES)
    said = {tuple(replies(lm, read(lm, ["dog", PROMPT], how))) for _, how in CASES.values()}
    assert len(said) > len(CASES) // 2


def test_what_the_fit_was_told_holds_beside_what_a_command_is_told(melbo, spoken, tmp_path):
    run = tmp_path / "run"
    told = ("--system", "he is a dog", "--prefix", "Sure", "--template-arg", "loud=true")
    random = ("--method", "random", "-m", 2, "--scale", 4)
    ended = melbo("fit", spoken, "--prompt", PROMPT, *random, "--out", run, *told)
    assert ended.code == 0, ended.err
    lm = load(spoken)
    how = {"system": "he is a dog", "prefix": "yes", "template_args": {"loud": True}}
    want = replies(lm, Prompts.chat(lm, ["dog"], **how))
    argv = ("--prompt", "dog", *SHORT, "--prefix", "yes", "--json")
    assert melbo("sample", run, *argv, "--feature", 0).rows[0]["text"] == want[0]
    assert melbo("ablate", run, *argv).rows[0]["unsteered"] == want[0]
    talk = melbo("chat", run, *SHORT, "--prefix", "yes", stdin="dog\n/quit\n")
    assert f"you: yes{want[0]}\n" in talk.out
    as_written = melbo("sample", run, "--prompt", "dog", *SHORT, "--text", "--json").rows
    assert as_written[0]["text"] == replies(lm, Prompts.text(lm, ["dog"]))[0]


@pytest.mark.parametrize("command", ["sample", "ablate"])
@pytest.mark.parametrize(
    ("options", "says"),
    [
        (("--text", "--prefix", "Sure"), "--prefix needs a chat template"),
        (("--template", "nowhere"), "the chat templates of .* are default, drops, other"),
        (("--template-arg", "quiet=true"), "quiet"),
        (("--template", "drops", "--system", "he is a dog"), "leaves the system message out"),
    ],
)
def test_what_cannot_be_read_is_refused(melbo, spoken, command, options, says):
    ended = melbo(command, "run", "--model", spoken, "--prompt", "dog", *SHORT, *options)
    assert re.search(says, one_line(ended))


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (("--template", "drops", "--system", "he is a dog"), "leaves the system message out"),
        (("--template", "nowhere"), "the chat templates of"),
        (("--template-arg", "quiet=true"), "quiet"),
        (("--prefix", " "), "prefix begins with ' ', which the tokenizer"),
    ],
)
def test_chat_feeds_nothing_that_loses_a_part(melbo, spoken, options, says):
    ended = melbo("chat", "run", "--model", spoken, *SHORT, *options, stdin="dog\n/quit\n")
    assert says in ended.err
    assert "Traceback" not in ended.err
    assert ended.out == "[unsteered] you: [unsteered] you: " or ended.code == 2


def test_chat_has_no_turns_without_a_template(melbo):
    said = one_line(melbo("chat", "run", "--text", stdin="dog\n"))
    assert "a conversation needs a chat template" in said
