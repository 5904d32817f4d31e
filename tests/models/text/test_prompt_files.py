"""Files of prompts and of pairs, in every writing that people bring."""

import json
import re

import pytest
from cases import tiny_model

from melbo import MelboError, Prompts
from melbo.models.text.conversation import Conversation
from melbo.models.text.prompt_files import ANSWERS, read_pairs, read_texts
from melbo.records import ResultLog

#: Characters other than a line feed at which `str.splitlines` ends a line.
ENDS = ["\r", "\v", "\f", "\x1c", "\x1d", "\x1e", "\x85", "\u2028", "\u2029"]


@pytest.fixture
def written(tmp_path):
    def write(data, name="prompts.txt"):
        path = tmp_path / name
        path.write_bytes(data if isinstance(data, bytes) else data.encode())
        return path

    return write


def rows(*values):
    return "\n".join(json.dumps(value, ensure_ascii=False) for value in values)


@pytest.mark.parametrize("end", ENDS)
def test_lines_end_at_a_line_feed_only(written, end):
    assert len(f"one{end}two".splitlines()) == 2
    assert read_texts(written(f"one{end}two\nother\n")) == [f"one{end}two", "other"]
    assert read_pairs(written(f"a{end}b\tc\nd\te{end}f\n")) == (
        [f"a{end}b", "d"],
        ["c", f"e{end}f"],
    )
    path = written(rows(f"one{end}two", {"prompt": f"a{end}b"}), "p.jsonl")
    assert read_texts(path) == [f"one{end}two", f"a{end}b"]


@pytest.mark.parametrize("name", ["p.txt", "p.tsv", "p"])
def test_windows_files_and_a_mark_at_the_start(written, name):
    data = "\ufeffone \r\n\r\n  \r\ntwo\r\n"
    assert read_texts(written(data, name)) == ["one ", "two"]
    assert read_pairs(written("\ufeffa\tb\r\n\r\nc\td", name)) == (["a", "c"], ["b", "d"])
    assert read_texts(written('\ufeff"one"\r\n\r\n"two"\r\n', "w.jsonl")) == ["one", "two"]


@pytest.mark.parametrize("encoding", ["latin-1", "utf-16", "utf-16-le", "utf-32-be", "cp1252"])
@pytest.mark.parametrize("name", ["p.txt", "p.jsonl"])
@pytest.mark.parametrize("read", [read_texts, read_pairs])
def test_other_encodings_are_refused(written, encoding, name, read):
    with pytest.raises(MelboError, match=r"cannot read .* \(not UTF-8\): expected a text file"):
        read(written('"über"\t"ö"\n'.encode(encoding), name))


def test_half_a_surrogate_pair_is_refused(written):
    with pytest.raises(MelboError, match="not UTF-8"):
        read_texts(written(b"dog \xed\xa0\x80\n"))
    with pytest.raises(MelboError, match="line 2 of .* is not valid UTF-8"):
        read_texts(written('"dog"\n"\\ud83d"\n', "p.jsonl"))
    assert read_texts(written('"\\ud83d\\udc36"', "p.jsonl")) == ["\U0001f436"]


TURNS = [
    {"role": "system", "content": "Sure"},
    {"role": "user", "content": "red\nor blue"},
    {"role": "assistant", "content": "red"},
]


def test_jsonl_holds_prompts_of_several_lines_and_turns(written):
    path = written(
        rows(
            "one\ntwo",
            {"prompt": "three\nfour", "id": 7},
            {"text": "five"},
            {"messages": TURNS, "source": "here"},
            {"messages": TURNS[1:2]},
        ),
        "p.JSONL",
    )
    read = read_texts(path)
    assert read[:3] == ["one\ntwo", "three\nfour", "five"]
    assert read[3:] == ["system: Sure\nuser: red\nor blue\nassistant: red", "red\nor blue"]
    assert all(isinstance(text, Conversation) for text in read[3:])
    lm = tiny_model("llama")
    found = Prompts.chat(lm, read)
    assert found.tokens[3] == Prompts.chat(lm, ["red\nor blue"], "Sure", prefix="red").tokens[0]
    assert found.tokens[4] == Prompts.chat(lm, ["red\nor blue"]).tokens[0]
    assert found.texts == tuple(read)


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("[", "is not JSON"),
        ("one two", "is not JSON"),
        ("[" * 100_000, "is not JSON"),
        ("7", "holds a number"),
        ("true", "holds true or false"),
        ('["a", "b"]', "holds a list"),
        ("{}", "holds an empty object"),
        ('{"question": "a"}', "holds an object with 'question'"),
        ('{"prompt": "a", "text": "b"}', "holds an object with 'prompt', 'text'"),
        ('{"prompt": ["a"]}', "holds a list for a text"),
        ('{"prompt": null}', "holds null for a text"),
        ('{"text": " "}', "holds a blank text"),
        ('""', "holds a blank text"),
        ('{"messages": "a"}', "messages that are no list"),
        ('{"messages": []}', "has no turn of a user"),
        ('{"messages": ["a"]}', "holds str: expected a role"),
        ('{"messages": [{"role": "user", "content": null}]}', "expected a role and a content"),
    ],
)
def test_lines_of_jsonl_that_are_no_prompts(written, line, says):
    path = written(f'"yes"\n\n{line}\n', "p.jsonl")
    with pytest.raises(MelboError, match=says) as refused:
        read_texts(path)
    said = str(refused.value)
    assert f"line 3 of {path}" in said
    assert re.search("expected|remove", said)
    assert "\n" not in said


def test_pairs_of_jsonl(written):
    path = written(
        rows({"plus": "a\tb", "minus": "c\nd"}, {"minus": "f", "plus": "e", "n": 1}), "p.jsonl"
    )
    assert read_pairs(path) == (["a\tb", "e"], ["c\nd", "f"])
    path = written(rows({"prompt": "a", "answer": "b"}), "a.jsonl")
    assert read_pairs(path, ANSWERS) == (["a"], ["b"])


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ('"a"', "holds a string"),
        ('{"plus": "a"}', "an object with 'plus'"),
        # a prompt and its answer are no contrast
        ('{"prompt": "a", "answer": "b"}', "an object with 'prompt', 'answer'"),
        ('{"plus": "a", "minus": 3}', "holds a number for a text"),
        ('{"plus": "a", "minus": ""}', "holds a blank text"),
        ("a\tb", "is not JSON"),
    ],
)
def test_lines_of_jsonl_that_are_no_pairs(written, line, says):
    path = written(f'{{"plus": "a", "minus": "b"}}\n{line}\n', "p.jsonl")
    with pytest.raises(MelboError, match=says) as refused:
        read_pairs(path)
    assert f"line 2 of {path}" in str(refused.value)


@pytest.mark.parametrize("read", [read_texts, read_pairs])
def test_files_that_hold_nothing_or_json_as_a_whole(written, tmp_path, read):
    for name in ("p.txt", "p.jsonl"):
        for data in ("", "\n \r\n", "\ufeff\n"):
            with pytest.raises(MelboError, match="holds no p"):
                read(written(data, name))
    with pytest.raises(MelboError, match="is JSON as a whole"):
        read(written('["a"]', "p.json"))
    with pytest.raises(MelboError, match="cannot read .*No such file"):
        read(tmp_path / "none.jsonl")
    with pytest.raises(MelboError, match="cannot read .*directory"):
        read(tmp_path)


def test_rows_of_a_log_end_at_a_line_feed(written):
    path = written(b'{"a": "b"\r }\n{"c": 1}\r\n', "rows.jsonl")
    assert ResultLog(path).rows == [{"a": "b"}, {"c": 1}]
