"""Replies to conversations, of a model that features may steer."""

from collections.abc import Sequence
from typing import Any

from melbo.errors import MelboError
from melbo.features.steerable import Steerable
from melbo.models.decoding.decode import continued
from melbo.models.edits import Edit, edit
from melbo.models.language_model import LanguageModel
from melbo.models.text.prompts import Prompts, pad_rows

Turn = dict[str, str]


def conversation_form(
    lm: LanguageModel, features: Steerable, form: Prompts | None = None
) -> Prompts:
    """Form in which a conversation is read: as the prompts of a fit were.

    Args:
        lm: The model.
        features: Features; the form of the prompts that they were fitted with is taken.
        form: Prompts whose system message, chat template and beginning of a reply are used instead.

    Raises:
        MelboError: The tokenizer has no chat template, or ``form`` reads prompts without one.
    """
    if getattr(lm.tokenizer, "chat_template", None) is None:
        raise MelboError(
            f"the tokenizer of {lm.name} has no chat template: use melbo sample instead"
        )
    if form is not None and form.kind == "text":
        raise MelboError(
            "a conversation needs a chat template, and the form given reads prompts without one: "
            "give another (no --text on the command line), or use melbo sample"
        )
    fitted = features.provenance.prompts if form is None else form
    if fitted is None or fitted.kind == "text":
        return Prompts((), (), "chat")
    return fitted


def answer(
    lm: LanguageModel,
    form: Prompts,
    turns: Sequence[Turn],
    edits: Sequence[Edit],
    max_new_tokens: int,
    temperature: float = 0.0,
    **more: Any,
) -> str:
    """Reply to the last turn of a conversation.

    Args:
        lm: The model.
        form: See `conversation_form`.
        turns: The turns so far, the user's last.
        edits: Edits of the model while it replies.
        max_new_tokens: Length of the reply at most.
        temperature: 0 for a greedy reply, see `melbo.generate`.
        more: Other arguments of ``generate``: a streamer, criteria of when to stop.

    Returns:
        The reply, with the beginning that the form gives it.

    Raises:
        MelboError: The conversation has become too long, or an edit does not fit the model.
    """
    told = form.conversation(lm, list(turns))
    ids, mask = pad_rows([told], lm.pad, side="left")
    with edit(lm, *edits):
        out = continued(lm, ids, mask, max_new_tokens, temperature, **more)
    new = out.sequences[0, ids.shape[1] :]
    return (form.prefix or "") + str(lm.tokenizer.decode(new, skip_special_tokens=True))
