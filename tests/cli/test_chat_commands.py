"""Commands of a conversation: system message, undo, again, both replies, features, transcripts."""

from threading import Event

import pytest
import torch
from cases import tiny_model
from explored import large
from talking import a_chat, assistant, by_hand, some_features, user

from melbo import FeatureSet, steer
from melbo.cli.chat import Chat
from melbo.cli.chat_features import listing
from melbo.cli.chat_screen import Screen, Wrapped
from melbo.explorer.labels import Label, Labels
from melbo.features.run_folder import TENSORS


@pytest.fixture(scope="module")
def lm():
    return tiny_model("llama")


class Stopping(Screen):
    """A screen on which one presses Ctrl-C after some pieces of the reply."""

    def __init__(self, after):
        self.stop, self.after, self.pieces = Event(), after, []

    def writer(self):
        def write(text):
            self.pieces.append(text)
            if len(self.pieces) > self.after:
                self.stop.set()

        return write


def test_a_feature_and_its_strength_in_one_command(lm):
    chat = a_chat(lm)
    assert chat.command("/steer 2 -0.5") == "feature 2 × -0.5"
    assert chat.command("/steer 1") == "feature 1 × -0.5"
    steering = steer(lm, chat.features[1], strength=-0.5)
    assert chat.reply("no") == by_hand(lm, [user("no")], steering=steering)


def test_a_system_message_is_read_from_the_next_message_on(lm):
    chat = a_chat(lm)
    assert chat.command("/system") == "system message: the template’s own"
    first = chat.reply("red or blue")
    assert chat.command("/system Sure he is a dog") == "system message: Sure he is a dog"
    turns = [
        {"role": "system", "content": "Sure he is a dog"},
        user("red or blue"),
        assistant(first),
        user("yes"),
    ]
    assert chat.reply("yes") == by_hand(lm, turns)
    assert chat.command("/system") == "system message: Sure he is a dog"


def test_what_is_taken_back_was_never_said(lm):
    chat = a_chat(lm, 1)
    assert chat.command("/undo") == chat.command("/again") == "nothing has been said yet"
    first = chat.reply("red or blue")
    chat.reply("yes")
    assert chat.command("/undo") == "taken back: yes"
    assert chat.turns == [user("red or blue"), assistant(first)]
    steering = steer(lm, chat.features[1])
    expected = by_hand(lm, [*chat.turns, user("no")], steering=steering)
    assert chat.reply("no") == expected


def test_again_replies_to_the_last_message_as_the_model_is_steered_now(lm):
    chat = a_chat(lm)
    chat.reply("red or blue")
    chat.command("/feature 1")
    said = chat.again()
    assert said == by_hand(lm, [user("red or blue")], steering=steer(lm, chat.features[1]))
    assert chat.turns == [user("red or blue"), assistant(said)]


def test_again_draws_anew(lm):
    chat = Chat(lm, some_features(lm), None, 1.0, 8, temperature=3.0)
    torch.manual_seed(0)
    chat.reply("red or blue")
    assert len({chat.again() for _ in range(4)}) > 1
    assert len(chat.exchanges) == 1


def test_both_replies_and_the_steered_one_goes_on(lm):
    chat = a_chat(lm, 1)
    assert chat.command("/both") == "both replies to each message from now on"
    screen = Stopping(after=1000)
    said = chat.reply("red or blue", screen, screen.stop)
    steering = steer(lm, chat.features[1])
    expected = by_hand(lm, [user("red or blue")], steering=steering)
    plain = by_hand(lm, [user("red or blue")])
    assert said == expected != plain
    assert "".join(screen.pieces) == f"unsteered: {plain}\nfeature 1 × 1: {expected}\n"
    assert chat.turns == [user("red or blue"), assistant(expected)]
    assert chat.exchanges[0].unsteered == plain
    assert chat.command("/both") == "one reply to each message from now on"
    chat.reply("yes")
    assert chat.exchanges[1].unsteered is None


def test_a_stopped_reply_is_what_was_said_by_then(lm):
    whole = a_chat(lm, max_new_tokens=12).reply("red or blue")
    chat = a_chat(lm, max_new_tokens=12)
    screen = Stopping(after=2)
    said = chat.reply("red or blue", screen, screen.stop)
    assert said
    assert whole.startswith(said)
    assert len(said) < len(whole)
    assert chat.turns == [user("red or blue"), assistant(said)]
    again = chat.again()
    assert again == whole


def test_a_transcript_says_who_said_what(lm, tmp_path):
    chat = a_chat(lm, 1, system="Sure he is a dog")
    first = chat.reply("red or blue")
    chat.command("/both")
    second = chat.reply("yes")
    path = tmp_path / "talk.md"
    assert chat.command(f"/save {path}") == f"saved as {path}"
    assert path.read_text(encoding="utf-8").split("\n\n") == [
        "# Conversation with llama",
        "**system:** Sure he is a dog",
        "**you:** red or blue",
        f"**feature 1 × 1:** {first}",
        "**you:** yes",
        f"**unsteered:** {chat.exchanges[1].unsteered}",
        f"**feature 1 × 1:** {second}\n",
    ]
    before = path.read_bytes()
    chat.reply("no")
    assert "is there already" in chat.command(f"/save {path}")
    assert path.read_bytes() == before
    assert "cannot write" in chat.command(f"/save {tmp_path / 'nowhere' / 'talk.md'}")


def test_features_are_listed_with_names_labels_and_strengths(tmp_path):
    folder = large(tmp_path / "run", 12, 6, 2, tokens=10)
    Labels(folder, TENSORS).put("3", Label(name="polite"))
    features = FeatureSet.load(folder)
    head, *lines = listing(features, folder, 20, 7, 0.5).splitlines()
    assert head.split() == ["feature", "flag", "α", "name"]
    assert len(lines) == 12
    listed = {int(line.lstrip("→ ").split()[0]): line for line in lines}
    assert set(listed) == set(range(12))
    for i, line in listed.items():
        assert f"{float(features.alpha[i]):.4g}" in line.split()
        assert line.startswith("→") == (i == 7)
    assert listed[3].endswith("polite")
    assert "marmalade" in listed[7]
    assert listed[7].endswith("(steers × 0.5)")
    few = listing(features, folder, 5, None, 1.0).splitlines()
    assert few == [head, *listing(features, folder, 20, None, 1.0).splitlines()[1:6], few[-1]]
    assert few[-1] == "5 of 12 features: /features 12 lists all"


def test_features_without_a_folder_are_listed_by_their_numbers(lm):
    chat = a_chat(lm, 1)
    lines = chat.command("/features").splitlines()
    assert [line.lstrip("→ ").split()[0] for line in lines[1:]] == ["0", "1", "2"]


def plainly_wrapped(text, width):
    """Lines of words as long as the width allows, one word after the other."""
    lines = [""]
    for word in text.split():
        longer = f"{lines[-1]} {word}".strip()
        if len(longer) > width and lines[-1]:
            lines.append(word)
        else:
            lines[-1] = longer
    return lines


@pytest.mark.parametrize("width", [12, 20, 79])
def test_words_wrap_as_they_come(width):
    text = "A walk through the city is a classic urban adventure, that takes you on a journey"
    said = []
    write = Wrapped(width, said.append)
    for word in text.split(" "):
        write(f"{word} ")
    lines = "".join(said).split("\n")
    assert lines == plainly_wrapped(text, width)
    assert max(map(len, lines)) <= width


def test_line_ends_and_indents_of_a_reply_stay():
    said = []
    Wrapped(20, said.append)("def f():\n    return 1\n\n日本語の文章です 日本語の文章です")
    lines = "def f():\n    return 1\n\n日本語の文章です\n日本語の文章です"
    assert "".join(said) == lines
