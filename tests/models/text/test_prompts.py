"""Prompts: how they are read, kept, read alike again, and refused."""

import copy
import json

import pytest
import torch
import transformers as tf
from cases import TINY, VOCAB, tiny_model, tiny_tokenizer
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from melbo import FeatureSet, LanguageModel, MelboError, Prompts, generate
from melbo.features.provenance import Provenance
from melbo.models.text.conversation import Conversation
from melbo.models.text.prompts import embedding_rows

THINKS = (
    "{% for m in messages %}<|{{ m.role }}|> {{ m.content }} </s> {% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
    "{% if not (enable_thinking | default(true)) %} no{% endif %}"
)
TURNS = [
    {"role": "user", "content": "red or blue"},
    {"role": "assistant", "content": "red"},
    {"role": "user", "content": "and she ?"},
]
REPLY = {"role": "assistant", "content": "she is"}


@pytest.fixture(scope="module")
def lm():
    return tiny_model("llama")


@pytest.fixture
def thinking(lm):
    return with_tokenizer(lm, {"default": THINKS.replace("</s>", ""), "thinks": THINKS})


def with_tokenizer(lm, template, tokenizer=None):
    other = copy.copy(lm)
    other.tokenizer = tokenizer or tiny_tokenizer()
    other.tokenizer.chat_template = template
    return other


def ids(lm, text):
    return tuple(lm.tokenizer(text, add_special_tokens=False)["input_ids"])


def test_a_chat_is_the_template_with_the_prompt_for_the_reply(lm):
    found = Prompts.chat(lm, ["red or blue", "yes"], system="Sure")
    for text, row in zip(("red or blue", "yes"), found.tokens, strict=True):
        turns = [{"role": "system", "content": "Sure"}, {"role": "user", "content": text}]
        told = lm.tokenizer.apply_chat_template(turns, tokenize=True, add_generation_prompt=True)
        assert row == tuple(told["input_ids"])


def test_a_conversation_is_read_turn_by_turn(lm):
    found = Prompts.chat(lm, [TURNS, "yes", Conversation(TURNS)])
    whole = "<s><|user|> red or blue </s><|assistant|> red </s><|user|> and she ? </s><|assistant|>"
    assert found.tokens[0] == found.tokens[2] == ids(lm, whole)
    assert found.texts[0] == "user: red or blue\nassistant: red\nuser: and she ?"
    assert found.tokens[1] == Prompts.chat(lm, "yes").tokens[0]
    assert Prompts.chat(lm, TURNS).tokens == found.tokens[:1]


def test_an_assistants_turn_at_the_end_begins_the_reply(lm):
    alone = Prompts.chat(lm, [TURNS]).tokens[0]
    begun = Prompts.chat(lm, [[*TURNS, REPLY], TURNS], prefix="Sure")
    assert begun.tokens[0] == (*alone, *ids(lm, "she is"))  # its own comes before the prefix
    assert begun.tokens[1] == (*alone, *ids(lm, "Sure"))


def test_a_system_message_of_ones_own_comes_before_the_common_one(lm):
    own = [{"role": "system", "content": "dog"}, *TURNS]
    assert Prompts.chat(lm, [own], system="Sure").tokens == Prompts.chat(lm, [own]).tokens
    expected = Prompts.chat(lm, [TURNS], system="dog").tokens
    assert Prompts.chat(lm, [own]).tokens == expected != Prompts.chat(lm, [TURNS]).tokens


@pytest.mark.parametrize(
    ("turns", "says"),
    [
        ([], "no turn of a user"),
        ([REPLY], "no turn of a user"),
        ([{"role": "user"}], "turn 0 of prompt 1 holds .'role'."),
        (["red"], "turn 0 of prompt 1 holds str"),
        ([*TURNS, {"role": "user", "content": None}], "turn 3 of prompt 1 .*text"),
        ([{"role": "user", "content": [{"type": "image"}]}], "turn 0 .*text"),
        ([{"role": "user", "content": " "}], "turn 0 of prompt 1 is blank"),
        ([{"role": "user", "content": "\ud800"}], "turn 0 of prompt 1 is not valid UTF-8"),
        ([{"role": "user", "content": "a", "tool_calls": []}], "turn 0 .*tool_calls"),
    ],
)
def test_turns_that_are_none_are_refused(lm, turns, says):
    with pytest.raises(MelboError, match=says):
        Prompts.chat(lm, ["yes", turns])


def test_a_conversation_needs_a_template(lm):
    with pytest.raises(MelboError, match="has turns.*Prompts.chat"):
        Prompts.text(lm, [Conversation(TURNS)])
    with pytest.raises(MelboError, match="has turns.*Prompts.chat"):
        Prompts.text(lm, ["yes"]).like(lm, [TURNS])


def test_parts_of_a_content_are_joined_and_copies_keep_their_turns():
    part = {"type": "text", "text": "red or"}
    made = Conversation([{"role": "user", "content": [part, {"type": "text", "text": " blue"}]}])
    assert made == "red or blue"
    assert copy.deepcopy(made).turns == made.turns == ({"role": "user", "content": "red or blue"},)


SETTINGS = [
    {},
    {"system": "Sure"},
    {"template": "thinks"},
    {"template_args": {"enable_thinking": False}},
    {"prefix": "yes ,"},
    {"system": "", "template": "thinks", "template_args": {"enable_thinking": 0}, "prefix": "no"},
]


@pytest.mark.parametrize("settings", SETTINGS)
def test_settings_are_kept_and_used_again(thinking, settings):
    prompts = Prompts.chat(thinking, ["red or blue", TURNS], **settings)
    kept = Prompts.from_description(json.loads(json.dumps(prompts.describe())))
    assert kept == prompts
    assert type(kept.texts[1]) is str
    expected = Prompts.chat(thinking, ["dog", TURNS], **settings)
    assert kept.like(thinking, ["dog", TURNS]) == expected
    assert kept[1:].like(thinking, ["dog", TURNS]) == expected
    assert kept[0].tokens == prompts.tokens[:1]
    run = {"map": {"prompts": prompts.describe()}}
    assert Provenance.of(run).prompts_like(thinking, ["dog", TURNS]) == expected


@pytest.mark.parametrize("settings", SETTINGS)
def test_a_conversation_is_rendered_with_their_settings(thinking, settings):
    prompts = Prompts.chat(thinking, ["yes"], **settings)
    said = prompts.render(thinking, TURNS)
    assert ids(thinking, said) == Prompts.chat(thinking, [TURNS], **settings).tokens[0]


def test_settings_make_a_difference_here(thinking):
    read = {Prompts.chat(thinking, ["dog"], **settings).digest for settings in SETTINGS}
    assert len(read) == len(SETTINGS)


def test_descriptions_of_earlier_versions_load(lm):
    prompts = Prompts.chat(lm, ["yes"], system="Sure")
    old = prompts.describe()
    assert set(old) == {"texts", "tokens", "kind", "system", "sha256"}
    assert Prompts.from_description(old) == prompts


def test_text_is_read_like_text(lm):
    prompts = Prompts.text(lm, ["yes"])
    assert prompts.like(lm, "red or").tokens == (tuple(lm.tokenizer("red or")["input_ids"]),)
    assert prompts.tokens[0][0] == lm.tokenizer.bos_token_id


@pytest.mark.parametrize("extra", ["system", "prefix"])
def test_broken_characters_are_refused(lm, extra):
    with pytest.raises(MelboError, match=f"the {extra}.*not valid UTF-8"):
        Prompts.chat(lm, ["yes"], **{extra: "a\udcff"})
    for read in (Prompts.chat, Prompts.text):
        with pytest.raises(MelboError, match="prompt 1 is not valid UTF-8"):
            read(lm, ["yes", "a\ud83d"])
    assert Prompts.text(lm, ["dog \U0001f436 \u2028 yes"]).tokens


def no_unknown_words():
    core = Tokenizer(models.WordLevel({"yes": 7, "<|user|>": 5}, unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    core.model = models.BPE({"y": 7, "e": 8, "s": 9}, [])  # drops what it does not know
    core.add_special_tokens([AddedToken("<|user|>", special=True)])
    return tf.PreTrainedTokenizerFast(tokenizer_object=core)


@pytest.mark.parametrize("read", [Prompts.chat, Prompts.text])
def test_words_that_no_token_stands_for_are_refused(lm, read):
    deaf = with_tokenizer(lm, "<|user|> {{ messages[0].content }}", no_unknown_words())
    assert read(deaf, ["yes"]).tokens[0][-3:] == (7, 8, 9)
    with pytest.raises(MelboError, match="no tokens of '7 7' .prompt 1."):
        read(deaf, ["yes", "7 7"])


@pytest.mark.parametrize("name", ["llama", "gpt2", "opt", "bloom"])
@pytest.mark.parametrize("read", [Prompts.chat, Prompts.text])
def test_tokens_without_an_embedding_are_refused(name, read):
    tokenizer = tiny_tokenizer()
    tokenizer.add_tokens(["grün"])
    lm = LanguageModel(TINY[name](), tokenizer, name=name)
    assert embedding_rows(lm) == VOCAB < len(tokenizer)
    assert read(lm, ["red or blue"]).tokens
    says = rf"prompt 1 holds the token 'grün' .id {VOCAB}., but {name} .* ids 0 to {VOCAB - 1}"
    with pytest.raises(MelboError, match=says):
        read(lm, ["red", "red grün"])
    lm.model.resize_token_embeddings(len(tokenizer))
    assert read(lm, ["red", "red grün"]).tokens[1].count(VOCAB) == 1


def test_rows_of_packed_embeddings_are_counted(lm):
    class Packed(torch.nn.Module):
        num_embeddings = 40
        weight = torch.zeros(20, 3, dtype=torch.uint8)

    packed = copy.copy(lm)
    packed.model = type("Model", (), {"get_input_embeddings": lambda _: Packed()})()
    assert embedding_rows(packed) == 40


def test_padding_without_an_embedding_is_replaced(lm):
    tokenizer = tiny_tokenizer()
    tokenizer.add_special_tokens({"pad_token": "<new pad>"})
    padless = with_tokenizer(lm, tokenizer.chat_template, tokenizer)
    prompts = Prompts.chat(padless, ["red or blue ?", "yes"])
    V = torch.eye(2, lm.width, dtype=torch.float64)
    features = FeatureSet(V, V, torch.ones(2, dtype=torch.float64), 4.0, 1, 3, {})
    said = generate(padless, prompts, features, max_new_tokens=3, progress=False)
    expected = generate(lm, prompts, features, max_new_tokens=3, progress=False)
    assert [c.tokens for c in said] == [c.tokens for c in expected]


def _metaspace(scheme, swallows=False):
    """A tokenizer as sentencepiece makes them; its control token may swallow what follows."""
    words = ["<pad>", "<s>", "</s>", "<unk>", "▁", *dict.fromkeys("INSTurelaki[]/xyz!?.0123\n")]
    words += ["▁Sure", "Sure", "▁Tell"]
    scores = [(w, -float(len(words) - i if len(w) > 1 else 50)) for i, w in enumerate(words)]
    core = Tokenizer(models.Unigram(scores, unk_id=3))
    core.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=scheme)
    core.decoder = decoders.Metaspace(prepend_scheme=scheme)
    core.add_special_tokens([AddedToken(w, special=True, rstrip=swallows) for w in words[:4]])
    made = tf.PreTrainedTokenizerFast(
        tokenizer_object=core, pad_token="<pad>", bos_token="<s>", eos_token="</s>"
    )
    close = "</s>" if swallows else "[/INST]"
    user = f"[INST] {{{{ m['content'] }}}} {close}"
    other = "{% else %}{{ m['content'] }}</s>{% endif %}{% endfor %}"
    asks = "{% for m in messages %}{% if m['role'] == 'user' %}"
    made.chat_template = f"<s>{asks}{user}{other}"
    return made


@pytest.mark.parametrize("scheme", ["first", "always", "never"])
def test_a_prefix_is_fed_with_the_spaces_at_its_ends(scheme):
    lm = LanguageModel(TINY["llama"](), _metaspace(scheme))
    fed = {}
    for prefix in ("Sure", " Sure", "Sure ", " Sure ", "\n Sure", "  Sure", " "):
        prompts = Prompts.chat(lm, ["Tell"], prefix=prefix)
        rendered = prompts.render(lm, [{"role": "user", "content": "Tell"}])
        assert rendered == "<s>[INST] Tell [/INST]" + prefix
        pieces = lm.tokenizer.convert_ids_to_tokens(list(prompts.tokens[0]))
        text = "".join(pieces).replace("▁", " ")
        assert text.endswith(prefix)
        fed[prefix] = prompts.tokens[0]
    # some tokenizers put a space after each control token, and none is lost for it
    assert len(set(fed.values())) == len(fed)


@pytest.mark.parametrize("scheme", ["first", "always", "never"])
def test_a_space_that_a_control_token_swallows_is_refused(scheme):
    lm = LanguageModel(TINY["llama"](), _metaspace(scheme, swallows=True))
    for lost in (" ", "\n", "\n\n"):
        with pytest.raises(MelboError, match="the prefix begins with .* swallows there") as err:
            Prompts.chat(lm, ["Tell"], prefix=lost + "Sure")
        assert "\n" not in str(err.value)
    kept = Prompts.chat(lm, ["Tell"], prefix="Sure ")
    assert kept.tokens != Prompts.chat(lm, ["Tell"], prefix="Sure").tokens
    turns = [{"role": "user", "content": "Tell"}, {"role": "assistant", "content": " Sure"}]
    with pytest.raises(MelboError, match="swallows there"):
        Prompts.chat(lm, [turns])
