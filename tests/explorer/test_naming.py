"""Names by a model behind an endpoint, which answers well, slowly, with an error, or nonsense."""

import json
import re
from functools import partial

import pytest
from audit_findings import finding, result
from explored import large
from stub_endpoint import said

from melbo import MelboError
from melbo.evaluation.endpoint import Endpoint
from melbo.explorer.labels import Label, Labels
from melbo.explorer.naming import feature_questions, finding_questions, name_by
from melbo.explorer.run_view import RunView

QUESTIONS = {"0": "zero", "3": "three", "7": "seven"}


def asking(server, **more):
    return partial(Endpoint(server.url, "namer", **{"pauses": (), **more}).ask, max_tokens=24)


@pytest.mark.parametrize(
    ("answer", "name"),
    [
        ("Talks of cheese", "Talks of cheese"),
        ('\n  "Talks of cheese."\nand more', "Talks of cheese"),
        ("**Name:** `Talks of cheese`", "Talks of cheese"),
        ("食べ物の話", "食べ物の話"),
        ("\x1b[2Jgone", "[2Jgone"),
        ("", None),
        ("...", None),
        ("I am sorry, but as a language model I can only say that these replies are odd.", None),
    ],
)
def test_a_name_is_a_short_first_line(tmp_path, answer, name):
    named = name_by(lambda question: answer, {"3": "?"}, Labels(tmp_path))
    assert named.names == ({} if name is None else {"3": name})
    assert named.unusable == (("3",) if name is None else ())
    assert Labels(tmp_path)["3"].name == (name or "")


def test_names_become_labels_beside_stars_and_notes(server, tmp_path):
    labels = Labels(tmp_path)
    labels.put("3", Label(star=True, note="odd"))
    labels.put("7", Label(name="mine"))
    server.body = lambda asked: said(f"about {asked['messages'][0]['content']}")
    named = name_by(asking(server), QUESTIONS, labels)
    assert named.names == {"0": "about zero", "3": "about three"}
    assert Labels(tmp_path)["3"] == Label("about three", True, "odd")
    assert Labels(tmp_path)["7"].name == "mine"
    assert name_by(asking(server), QUESTIONS, labels, force=True).names.keys() == QUESTIONS.keys()
    assert Labels(tmp_path)["7"].name == "about seven"


@pytest.mark.parametrize(
    ("fault", "says"),
    [
        ({"status": 500}, "500"),
        ({"body": "<html>"}, "no answer from"),
        ({"body": "{}"}, "no answer from"),
        ({"body": json.dumps({"choices": []})}, "no answer from"),
        ({"seconds": 1.0}, "timed out"),
    ],
    ids=str,
)
def test_an_endpoint_that_fails_loses_nothing(server, tmp_path, fault, says):
    labels = Labels(tmp_path)
    server.body = said("fine")

    def ask(question):
        if question == "three":
            for name, value in fault.items():
                setattr(server, name, value)
        return asking(server, timeout=0.2)(question)

    named = name_by(ask, QUESTIONS, labels)
    assert named.names == {"0": "fine"}
    assert says in named.failure
    server.status, server.seconds, server.body = 200, 0.0, said("better")
    assert name_by(asking(server), QUESTIONS, labels).names == {"3": "better", "7": "better"}
    assert Labels(tmp_path)["0"].name == "fine"


def test_an_endpoint_that_is_nowhere_says_so(server):
    server.shutdown()
    server.server_close()
    with pytest.raises(MelboError, match="no answer from .*OPENAI_API_KEY"):
        asking(server)("one")


def test_a_question_has_the_prompt_and_both_replies(server):
    server.body = said("cheese")
    (question,) = finding_questions(result(finding(name="brie"))).values()
    assert asking(server)(question) == "cheese"
    ((path, _, asked),) = server.asked
    assert (path, asked["model"], asked["max_tokens"]) == ("/v1/chat/completions", "namer", 24)
    told = asked["messages"][0]["content"]
    assert re.findall(r"^Prompt: prompt (\d)", told, re.MULTILINE) == ["0", "1", "2"]
    assert "Changed reply: Say some Brie and <script>1</script>" in told
    assert "Unchanged reply: own 1" in told


def test_active_features_are_asked_about_in_the_order_of_the_ranking(tmp_path):
    view = RunView(large(tmp_path, num=24, prompts=8, controls=3, tokens=12))
    questions = feature_questions(view, [])
    assert list(questions) == [str(row.index) for row in view.rows if row.flag == "active"]
    index = view.rows[-1].index
    (question,) = feature_questions(view, [index]).values()
    said = view.replies(index, None)[0]
    assert " ".join(said.feature.split())[:100] in question
    assert " ".join(said.unsteered.split())[:100] in question
