"""Chat templates of many kinds: what was asked is in what is fed, or it is refused."""

import copy

import pytest
from cases import tiny_model, tiny_tokenizer

from melbo import MelboError, Prompts
from melbo.models.text.chat_template import render_chat

_PROMPT = "{% if add_generation_prompt %}<|assistant|>{% endif %}"


def _each(said, head="<|{{ m.role }}|> "):
    return "{% for m in messages %}" + head + said + " </s> {% endfor %}" + _PROMPT


_PARTS = "{% for p in m.content %}{% if p.type == 'text' %}{{ p.text }}{% endif %}{% endfor %}"
_SYSTEM_AS_TEXT = (
    "{% if m.role == 'system' %}{{ m.content | trim }}{% else %}" + _PARTS + "{% endif %}"
)
_LLAMA2 = (
    "{% if messages[0].role == 'system' %}{% set system = messages[0].content %}"
    "{% set messages = messages[1:] %}{% endif %}"
    "{% for m in messages %}{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('roles must alternate') }}{% endif %}"
    "{% if m.role == 'user' %}<|user|> {% if loop.first and system is defined %}"
    "{{ system }} ! {% endif %}{{ m.content }} <|assistant|>"
    "{% else %} {{ m.content }} </s>{% endif %}{% endfor %}"
)
_GEMMA = (
    "{% if messages[0].role == 'system' %}{{ raise_exception('System role not supported') }}"
    "{% endif %}" + _each("{{ m.content | trim }}")
)
_QWEN3 = (
    _each("{{ m.content.split('</think>')[-1] }}")
    + "{% if enable_thinking is defined and not enable_thinking %} no{% endif %}"
)
#: Templates that feed all that is asked.
KEEP = {
    "plain": _each("{{ m.content }}"),
    "stripped": _each("{{ m.content.strip() }}"),
    "lower": _each("{{ m.content | lower }}"),
    "escaped": _each("{{ m.content | e }}"),
    "json": _each("{{ m.content | tojson }}"),
    "marked lines": _each("{{ m.content.replace('\n', '<n>') }}"),
    "parts": _each(_PARTS),
    "first part": _each("{{ m.content[0]['text'] }}"),
    "parts by attribute": _each(
        "{{ (m.content | selectattr('type', 'equalto', 'text') | first).text }}"
    ),
    "system as text": _each(_SYSTEM_AS_TEXT),
    "either": _each(
        "{% if m.content is string %}{{ m.content }}{% else %}" + _PARTS + "{% endif %}"
    ),
    "llama2": _LLAMA2,
    "qwen3": _QWEN3,
}
#: Templates that lose something, or fail.
LOSE = {
    "nothing": ("yes", r"leaves out .*user's message 'red or"),
    "blank": (" ", r"leaves out .*user's message"),
    "no user": (_each("{% if m.role != 'user' %}{{ m.content }}{% endif %}"), "leaves out"),
    "beginning": (_each("{{ m.content[:5] }}"), "leaves out .part of."),
    "one word": (_each("{{ m.content.split()[0] }}"), "leaves out .part of."),
    "other key": (_each("{{ m.text }}"), "leaves out"),
    "list as it is": (_each("{{ m.content if m.content is not string }}"), "leaves out"),
    "python error": (_each("{{ m.content + 1 }}"), "refuses these turns .*--text"),
    "undefined": (_each("{{ m.content.a.b }}"), "refuses these turns .*--text"),
    "division": ("{{ 1 / 0 }}", "refuses these turns .*division"),
    "syntax": ("{% for m in %}", "refuses these turns"),
    "raised": ("{{ raise_exception('not\nnow') }}", r"refuses these turns .not now."),
}
SYSTEM = "Sorry <cat> & dog"
ASKED = 'red or\nblue & "sun" ? Tell'


@pytest.fixture(scope="module")
def lm():
    return tiny_model("llama")


@pytest.fixture
def with_template(lm):
    def made(template):
        other = copy.copy(lm)
        other.tokenizer = tiny_tokenizer()
        other.tokenizer.chat_template = template
        return other

    return made


def one_line(refused):
    said = str(refused.value)
    assert "\n" not in said
    assert ": " in said
    return said


@pytest.mark.parametrize("name", KEEP)
@pytest.mark.parametrize("system", [None, SYSTEM])
def test_what_is_asked_is_fed(with_template, name, system):
    lm = with_template(KEEP[name])
    turns = [{"role": "user", "content": ASKED}]
    if system is not None:
        turns = [{"role": "system", "content": system}, *turns]
    rendered = render_chat(lm, turns)
    ids = lm.tokenizer(rendered, add_special_tokens=False)["input_ids"]
    assert Prompts.chat(lm, [ASKED], system).tokens == (tuple(ids),)
    assert rendered.endswith(("<|assistant|>", " no"))
    assert "'type'" not in rendered
    at = -1
    for word in f"{'' if system is None else 'Sorry'} red or blue sun Tell".split():
        at = rendered.lower().index(word.lower(), at + 1)  # in this order


@pytest.mark.parametrize("name", ["parts", "first part", "system as text"])
def test_parts_give_what_text_gives_a_plain_template(with_template, name):
    turns = [{"role": "system", "content": "Sure"}, {"role": "user", "content": "red or blue"}]
    expected = render_chat(with_template(KEEP["plain"]), turns)
    assert render_chat(with_template(KEEP[name]), turns) == expected


def test_a_plain_template_is_rendered_as_transformers_does(with_template):
    for name in ("plain", "llama2", "qwen3", "either"):
        lm = with_template(KEEP[name])
        turns = [{"role": "system", "content": "Sure"}, {"role": "user", "content": "red or blue"}]
        expected = lm.tokenizer.apply_chat_template(
            turns, tokenize=False, add_generation_prompt=True
        )
        assert render_chat(lm, turns) == expected


@pytest.mark.parametrize("name", LOSE)
def test_a_template_that_loses_a_prompt_is_refused(with_template, name):
    template, says = LOSE[name]
    with pytest.raises(MelboError, match=says) as refused:
        Prompts.chat(with_template(template), [ASKED])
    one_line(refused)


@pytest.mark.parametrize(
    ("template", "says"),
    [
        (_GEMMA, r"System role not supported.: leave the system message out"),
        (_each("{% if m.role == 'user' %}{{ m.content }}{% endif %}"), "leaves the system message"),
        (_each("{{ m.content if m.role != 'system' else 'Sure' }}"), "leaves the system message"),
        ("<|user|> {{ messages[-1].content }}" + _PROMPT, "leaves the system message"),
        # words of the template are not taken for the message
        ("Sure Sorry <|user|> {{ messages[-1].content }}" + _PROMPT, "leaves the system message"),
        (
            "{% if messages | length > 1 %}{{ [] + 1 }}{% endif %}" + KEEP["plain"],
            "refuses .*leave the system message out",
        ),
    ],
)
def test_a_template_that_loses_the_system_message_is_refused(with_template, template, says):
    lm = with_template(template)
    with pytest.raises(MelboError, match=says) as refused:
        Prompts.chat(lm, ["red or blue"], system="Sure")
    one_line(refused)
    assert Prompts.chat(lm, ["red or blue"]).tokens


def test_words_of_the_template_are_not_taken_for_the_prompt(with_template):
    lm = with_template("Tell me {{ messages[0].text }}" + _PROMPT)
    with pytest.raises(MelboError, match="user's message 'Tell me'"):
        Prompts.chat(lm, ["Tell me"])


@pytest.mark.parametrize("name", ["escaped", "json", "one line"])
def test_a_prompt_without_words_is_found(with_template, name):
    lm = with_template({**KEEP, "one line": _each("{{ m.content.split() | join(' ') }}")}[name])
    asked = '?  &\n"!" <'
    assert Prompts.chat(lm, [asked]).tokens
    with pytest.raises(MelboError, match="leaves out"):
        Prompts.chat(with_template("? & ! {{ messages[0].text }}" + _PROMPT), [asked])


SWITCHED = (
    "{% set enable_thinking = not '/no_think' in messages[0].content %}"
    + _each("{{ m.content.replace('/no_think', '') | trim }}")
    + "{% if not enable_thinking %} no{% endif %}"
)


@pytest.mark.parametrize("system", ["/no_think", "Sure /no_think", "/no_think\nSorry he"])
def test_settings_among_the_words_may_be_taken_out(with_template, system):
    lm = with_template(SWITCHED)
    turns = [{"role": "system", "content": system}, {"role": "user", "content": "yes"}]
    said = render_chat(lm, turns)
    assert "think" not in said
    assert said.endswith("<|assistant|> no")
    with pytest.raises(MelboError, match="leaves the system message out"):
        render_chat(with_template("{{ messages[-1].content }}" + _PROMPT), turns)


def test_an_argument_that_the_template_sets_itself_is_refused(with_template):
    with pytest.raises(MelboError, match="reads no argument 'enable_thinking'"):
        Prompts.chat(with_template(SWITCHED), ["yes"], template_args={"enable_thinking": False})
    usual = "{% if enable_thinking is not defined %}{% set enable_thinking = true %}{% endif %}"
    marked = _each("{% generation %}{{ m.content }}{%- endgeneration -%}")
    lm = with_template(usual + marked + "{% if not enable_thinking %} no{% endif %}")
    said = [Prompts.chat(lm, ["yes"], template_args=a) for a in (None, {"enable_thinking": False})]
    assert said[0].tokens[0] == said[1].tokens[0][:-1]


def test_a_blank_system_message_need_not_be_found(with_template):
    lm = with_template(KEEP["plain"])
    assert Prompts.chat(lm, ["yes"], system="").tokens != Prompts.chat(lm, ["yes"]).tokens
    assert Prompts.chat(with_template(_LLAMA2), ["yes"], system="").tokens


def test_a_turn_that_is_lost_among_several_is_named(with_template):
    turns = [
        {"role": "user", "content": "red"},
        {"role": "assistant", "content": "<think>was she</think>yes"},
        {"role": "user", "content": "red"},
    ]
    assert "yes" in render_chat(with_template(KEEP["qwen3"]), turns)
    only_last = with_template("<|user|> {{ messages[-1].content }}" + _PROMPT)
    with pytest.raises(MelboError, match="user's message 'red'"):
        render_chat(only_last, turns)
    no_replies = with_template(_each("{% if m.role == 'user' %}{{ m.content }}{% endif %}"))
    with pytest.raises(MelboError, match="assistant's message '<think>was she"):
        render_chat(no_replies, turns)


def named(with_template, kind=dict):
    templates = {
        "default": KEEP["plain"],
        "tool_use": KEEP["lower"],
        "short": "{{ messages[0].content }}",
    }
    if kind is list:
        return with_template([{"name": n, "template": t} for n, t in templates.items()])
    return with_template(templates)


@pytest.mark.parametrize("kind", [dict, list])
def test_named_templates(with_template, kind):
    lm = named(with_template, kind)
    turns = [{"role": "user", "content": "Tell"}]
    assert render_chat(lm, turns, "short") == "Tell"
    assert "tell" in render_chat(lm, turns, "tool_use")
    assert render_chat(lm, turns) == render_chat(lm, turns, "default")
    with pytest.raises(MelboError, match="'long', but .*are default, short, tool_use") as refused:
        Prompts.chat(lm, ["Tell"], template="long")
    one_line(refused)


def test_named_templates_without_a_default(with_template):
    lm = with_template({"a": KEEP["plain"], "b": KEEP["lower"]})
    with pytest.raises(MelboError, match="got no template, but .*are a, b: name one"):
        Prompts.chat(lm, ["Tell"])
    assert Prompts.chat(lm, ["Tell"], template="a").tokens


def test_a_template_of_ones_own(with_template):
    for own in (None, KEEP["lower"], {"a": KEEP["lower"]}):
        lm = with_template(own)
        expected = Prompts.chat(with_template(KEEP["plain"]), ["Tell"]).tokens
        assert Prompts.chat(lm, ["Tell"], template=KEEP["plain"]).tokens == expected


def test_a_name_for_a_single_template_or_none_is_refused(with_template):
    with pytest.raises(MelboError, match="a single one, without a name"):
        Prompts.chat(with_template(KEEP["plain"]), ["yes"], template="rag")
    with pytest.raises(MelboError, match="no chat template"):
        Prompts.chat(with_template(None), ["yes"], template="rag")


def test_arguments_reach_the_template(with_template):
    lm = with_template(KEEP["qwen3"])
    plain = Prompts.chat(lm, ["yes"])
    thoughtless = Prompts.chat(lm, ["yes"], template_args={"enable_thinking": False})
    assert thoughtless.tokens[0] == (*plain.tokens[0], lm.tokenizer.convert_tokens_to_ids("no"))
    assert Prompts.chat(lm, ["yes"], template_args={"enable_thinking": True}).tokens == plain.tokens
    assert Prompts.chat(lm, ["yes"], template_args={}) == plain


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"enable_thinkin": False}, "reads no argument 'enable_thinkin'"),
        ({"add_generation_prompt": False}, "'add_generation_prompt' is not free"),
        ({"tokenize": True}, "'tokenize' is not free"),
        ({"enable_thinking": object()}, "cannot be kept"),
    ],
)
def test_arguments_that_do_nothing_are_refused(with_template, arguments, says):
    with pytest.raises(MelboError, match=says) as refused:
        Prompts.chat(with_template(KEEP["qwen3"]), ["yes"], template_args=arguments)
    one_line(refused)


@pytest.mark.parametrize("name", ["plain", "lower", "parts", "system as text", "qwen3"])
def test_a_prefix_follows_the_prompt_for_the_reply(with_template, name):
    lm = with_template(KEEP[name])
    turns = [{"role": "user", "content": "red or blue"}]
    assert render_chat(lm, turns, prefix=" Sure , ") == render_chat(lm, turns) + " Sure , "


@pytest.mark.parametrize(
    "template",
    [_LLAMA2, _each("{{ m.content }}").replace(_PROMPT, ""), _each(_PARTS).replace(_PROMPT, "")],
)
def test_a_prefix_where_there_is_no_prompt_for_the_reply(with_template, template):
    """It stands where the template writes a reply."""
    lm = with_template(template)
    turns = [{"role": "user", "content": "red"}]
    whole = [*turns, {"role": "assistant", "content": "yes"}]
    if _PARTS in template:
        whole = [{**t, "content": [{"type": "text", "text": t["content"]}]} for t in whole]
    closed = lm.tokenizer.apply_chat_template(whole, tokenize=False)
    begun = render_chat(lm, turns, prefix="yes")
    assert closed.startswith(begun)
    assert begun.endswith("yes")
    assert render_chat(lm, turns) in begun
