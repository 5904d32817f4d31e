"""Conversations as text, by a tokenizer's chat template, with nothing of them lost."""

import html
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from jinja2 import Environment, TemplateError
from jinja2.meta import find_undeclared_variables

from melbo.errors import MelboError
from melbo.models.text.conversation import Turn

if TYPE_CHECKING:
    from melbo.models.language_model import LanguageModel

# names that transformers or this module gives a value to
_TAKEN = frozenset(
    (
        "add_generation_prompt",
        "chat_template",
        "continue_final_message",
        "conversation",
        "max_length",
        "messages",
        "padding",
        "return_assistant_tokens_mask",
        "return_dict",
        "return_tensors",
        "sanitize_control_tokens",
        "tokenize",
        "tokenizer_kwargs",
        "truncation",
    )
)
# characters for private use, which texts do not hold; one stands in for a message
_STAND_INS = ("\ue0f1", "\ue0f2")
# what some templates take for a setting instead of words to be fed
_SWITCH = re.compile(r"(?<!\S)/(no_?)?think(?!\S)")
# content parts, written out as a list instead of being read
_LIST = re.compile(r"""['"]type['"]:\s*['"]text['"]""")


def render_chat(
    lm: "LanguageModel",
    turns: Sequence[Turn],
    template: str | None = None,
    template_args: Mapping[str, Any] | None = None,
    prefix: str | None = None,
) -> str:
    """Text of a conversation as the model reads it, up to where its reply begins.

    Contents are given as text. Where a template then fails or loses a message, as templates of
    models that see pictures do, they are given as lists of parts instead. Each message is looked
    for in what comes out; white space, case and escaped characters may differ, and the thoughts of
    an earlier reply may be missing.

    Args:
        lm: The model.
        turns: The turns so far, each with its ``role`` and ``content``. An assistant's turn at the
            end is continued: it stands in place of ``prefix``.
        template: Name of one of the tokenizer's templates, or a template itself; None for the
            default one.
        template_args: Arguments of the template, such as ``{"enable_thinking": False}``.
        prefix: Beginning of the reply.

    Raises:
        MelboError: There is no such template or no such argument; the template fails on the turns
            (many refuse a system message), or leaves a message out.
    """
    turns = list(turns)
    if turns and turns[-1]["role"] == "assistant":
        prefix = turns.pop()["content"]
    source = template_of(lm, template)
    form = _Form(lm, source, check_arguments(lm, source, template_args))
    rendered, given = form.read(turns)
    return form.begin(given, rendered, prefix) if prefix else rendered


def template_of(lm: "LanguageModel", name: str | None = None) -> str:
    """Find a chat template of a tokenizer.

    Args:
        lm: The model.
        name: Name of the template, or a template itself; None for the default one.

    Returns:
        The template, in Jinja.

    Raises:
        MelboError: The tokenizer has none, or none of that name.
    """
    if name is not None and ("{{" in name or "{%" in name):
        return name
    own = getattr(lm.tokenizer, "chat_template", None)
    if isinstance(own, (list, tuple)):  # as old configurations keep them
        own = {each["name"]: each["template"] for each in own}
    if not own:
        raise MelboError(
            f"the tokenizer of {lm.name} has no chat template: "
            "use Prompts.text (--text on the command line)"
        )
    if isinstance(own, str):
        if name is not None and name != "default":
            raise MelboError(
                f"got the template {name!r}, but {lm.name} has a single one, without a name: "
                "leave the template out"
            )
        return own
    wanted = "default" if name is None else name
    if wanted not in own:
        got = "no template" if name is None else f"the template {name!r}"
        raise MelboError(
            f"got {got}, but the chat templates of {lm.name} are {', '.join(sorted(own))}: "
            "name one of them (template=, --template)"
        )
    return str(own[wanted])


def check_arguments(
    lm: "LanguageModel", source: str, given: Mapping[str, Any] | None
) -> dict[str, Any]:
    """Check arguments of a chat template.

    Args:
        lm: The model.
        source: The template.
        given: The arguments, by name.

    Returns:
        The arguments, as JSON keeps them.

    Raises:
        MelboError: The template does not read one, the package sets it itself, or JSON cannot keep
            it.
    """
    read = _variables(source) if given else frozenset()
    for name in given or {}:
        if name in _TAKEN:
            raise MelboError(f"the template argument {name!r} is not free: leave it out")
        if name not in read:
            raise MelboError(
                f"the chat template of {lm.name} reads no argument {name!r}: check its name"
            )
    try:
        kept: dict[str, Any] = json.loads(json.dumps(dict(given or {})))
    except (TypeError, ValueError) as err:
        raise MelboError(
            f"a template argument cannot be kept ({err}): expected text, numbers, lists, true, "
            "false or null"
        ) from err
    return kept


@lru_cache(maxsize=16)
def _variables(source: str) -> frozenset[str]:
    """Names that a template reads before it gives them a value itself."""
    try:
        # a tag of transformers, which says nothing of names
        plain = re.sub(r"\{%[-+]?\s*(end)?generation\s*[-+]?%\}", "", source)
        tree = Environment(extensions=["jinja2.ext.loopcontrols"], autoescape=False).parse(plain)
    except TemplateError:  # rendering will say so
        return frozenset(re.findall(r"\w+", source))
    return frozenset(find_undeclared_variables(tree))


class _Form:
    """A chat template with its arguments.

    Args:
        lm: The model.
        source: The template.
        arguments: Its arguments.
    """

    def __init__(self, lm: "LanguageModel", source: str, arguments: Mapping[str, Any]) -> None:
        self._lm, self._source, self._arguments = lm, source, arguments

    def read(self, turns: Sequence[Turn]) -> tuple[str, list[dict[str, Any]]]:
        """Render turns in the first form of which nothing is lost.

        Returns:
            The text up to where the reply begins, and the turns as the template got them.

        Raises:
            MelboError: There is no such form; says what became of the plainest.
        """
        first: Exception | Turn | None = None
        for given in _forms(turns):
            try:
                rendered = self._render(given)
            # a template is a program, and may fail in a way of its own
            except Exception as err:
                first = first or err
                continue
            lost = self._lost(turns, given, rendered)
            if lost is None:
                return rendered, given
            first = first or lost
        if isinstance(first, Exception):
            raise self._failure(turns, first) from first
        assert first is not None
        raise self._loss(first)

    def begin(self, given: list[dict[str, Any]], rendered: str, prefix: str) -> str:
        """Add the beginning of a reply to a rendered prompt.

        A template without a prompt for the reply writes what comes before a reply together with
        the reply, so it is taken from there.

        Args:
            given: The turns as the template got them.
            rendered: The text up to where the reply begins.
            prefix: Beginning of the reply.
        """
        stand_in = _stand_in(rendered + prefix)
        reply = {"role": "assistant", "content": _like(given[-1]["content"], stand_in)}
        try:
            if self._render(given, prompt=False) == rendered:
                whole = self._render([*given, reply], prompt=False)
                if whole.startswith(rendered) and stand_in in whole:
                    return whole[: whole.index(stand_in)] + prefix
        # not all templates can be asked for this
        except Exception:
            pass
        return rendered + prefix

    def _render(self, given: Sequence[Mapping[str, Any]], prompt: bool = True) -> str:
        rendered = self._lm.tokenizer.apply_chat_template(
            list(given),
            chat_template=self._source,
            tokenize=False,
            add_generation_prompt=prompt,
            **self._arguments,
        )
        return str(rendered)

    def _lost(
        self, turns: Sequence[Turn], given: list[dict[str, Any]], rendered: str
    ) -> Turn | None:
        """First message that is missing in a rendered prompt.

        A message is looked for in what changes when another stands in its place, so that words of
        the template are not taken for it.
        """
        listed = sum(len(_LIST.findall(turn["content"])) for turn in turns)
        for i, turn in enumerate(turns):
            words = turn["content"]
            if turn["role"] == "assistant":
                words = words.rpartition("</think>")[2]  # thoughts are often left out on purpose
            if not words.strip():
                continue
            words = _SWITCH.sub("", words)
            part = _like(given[i]["content"], _stand_in(rendered + words))
            other = [*given[:i], {**given[i], "content": part}, *given[i + 1 :]]
            try:
                region = _difference(rendered, self._render(other))
            # a template may refuse the message that stands in
            except Exception:
                region = rendered
            unread = not isinstance(given[i]["content"], str) and (
                len(_LIST.findall(rendered)) > listed
            )
            if unread or not region or not _occurs(words, region):
                return turn
        return None

    def _failure(self, turns: Sequence[Turn], err: Exception) -> MelboError:
        """Message for a template that fails; tries whether the system message is to blame."""
        remedy = (
            "use Prompts.text (--text on the command line), "
            "or another template (template=, --template)"
        )
        others = [turn for turn in turns if turn["role"] != "system"]
        if len(others) < len(turns):
            try:
                self.read(others)
                remedy = "leave the system message out (--system)"
            except MelboError:
                pass
        reason = " ".join(str(err).split())[:160] or type(err).__name__
        return MelboError(
            f"the chat template of {self._lm.name} refuses these turns ({reason}): {remedy}"
        )

    def _loss(self, turn: Turn) -> MelboError:
        """Message for a template that leaves a message out."""
        if turn["role"] == "system":
            return MelboError(
                f"the chat template of {self._lm.name} leaves the system message out: "
                "give none (--system), or write it into the prompt"
            )
        return MelboError(
            f"the chat template of {self._lm.name} leaves out (part of) the {turn['role']}'s "
            f"message {turn['content'][:40]!r}: use Prompts.text (--text on the command line), "
            "or another template (template=, --template)"
        )


def _forms(turns: Sequence[Turn]) -> Iterator[list[dict[str, Any]]]:
    """Turns in the forms that templates expect: contents as text, as lists of parts, and mixed."""

    def parts(turn: Turn) -> dict[str, Any]:
        return {**turn, "content": _like([], turn["content"])}

    system = [turn["role"] == "system" for turn in turns]
    yield [dict(turn) for turn in turns]
    yield [parts(turn) for turn in turns]
    if any(system):
        for which in (False, True):
            yield [
                parts(turn) if own == which else dict(turn)
                for turn, own in zip(turns, system, strict=True)
            ]


def _like(content: str | list[Any], text: str) -> str | list[dict[str, str]]:
    """Give text the form of a content."""
    return text if isinstance(content, str) else [{"type": "text", "text": text}]


def _stand_in(text: str) -> str:
    """A character that a text does not hold."""
    return next((c for c in _STAND_INS if c not in text), _STAND_INS[-1])


def _difference(text: str, other: str) -> str:
    """Part of a text from the first to the last character in which it differs from another."""
    start, most = 0, min(len(text), len(other))
    while start < most and text[start] == other[start]:
        start += 1
    end = 0
    while end < most - start and text[-1 - end] == other[-1 - end]:
        end += 1
    return text[start : len(text) - end]


def _occurs(words: str, region: str) -> bool:
    """Tell whether a text is part of another.

    White space, case and escaped characters may differ, and marks may be put between words.
    """
    unescaped = html.unescape(region)
    places = [_squashed(region), _squashed(unescaped)]
    texts = [words, *(json.dumps(words, ensure_ascii=ascii)[1:-1] for ascii in (False, True))]
    if any(_squashed(text) in place for text in texts for place in places):
        return True
    asked = re.findall(r"[^\W_]+", words.casefold())
    found = iter(re.findall(r"[^\W_]+", unescaped.casefold()))
    return bool(asked) and all(word in found for word in asked)


def _squashed(text: str) -> str:
    """The text without white space and capitals."""
    return "".join(text.split()).casefold()
