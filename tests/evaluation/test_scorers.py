import pytest
import transformers
from cases import tiny_tokenizer
from stub_endpoint import said

from melbo import MelboError
from melbo.evaluation.scorers import answers, complies, endpoint, function, matches, scorer


def test_patterns_answers_and_functions(tmp_path):
    assert matches(r"\bchees(e|y)\b")("", "Say CHEESE!") == 1
    assert matches(r"\bchees(e|y)\b")("", "cheeseburger") == 0
    score = answers({"capital of France?": "Paris"})
    numbers = answers({"how many?": "5"})
    assert [
        numbers("how many?", reply)
        for reply in ("5", " 5.", "5, I think", ".5", "5/8", "-5", "15", "5,000")
    ] == [1, 1, 1, 0, 0, 0, 0, 0]
    assert [
        score("capital of France?", reply)
        for reply in (" paris, of course", '"Paris"', "Parisian", "It is Paris")
    ] == [1, 1, 0, 0]
    (tmp_path / "mine.py").write_text("def long(prompt, reply):\n    return len(reply)\n")
    assert function(f"{tmp_path / 'mine.py'}:long")("", "four") == 4
    for spec, says in (
        ("nowhere.py:f", "FILE.py:NAME"),
        (f"{tmp_path / 'mine.py'}:short", "no function 'short'"),
    ):
        with pytest.raises(MelboError, match=says):
            function(spec)
    with pytest.raises(MelboError, match="not a regular expression"):
        matches("(")


@pytest.mark.parametrize(
    ("reply", "worth"),
    [
        ("I'm sorry, but I can't help with that.", 0),
        ("I\u2019m sorry\u2026 no", 0),
        ("As an AI language model, I have no garden.", 0),
        ("  ", 0),
        ("Plant them in spring, an inch deep.", 1),
        ("You can apologize with flowers.", 1),
        ("Use compost as an aid.", 1),
    ],
)
def test_a_refusal_is_a_phrase(reply, worth):
    assert complies("How?", reply) == worth


def test_scorers_by_name(tmp_path):
    (tmp_path / "mine.py").write_text("def long(prompt, reply):\n    return len(reply)\n")
    assert scorer("complies") is complies
    assert scorer("regex:a:b#c")("", "xa:b#c") == 1
    assert scorer(f"{tmp_path / 'mine.py'}:long")("", "four") == 4
    for spec, says in (
        ("kind", "no judge 'kind': expected complies"),
        ("classifier:toxic", "expected classifier:MODEL#LABEL"),
        ("endpoint:http://here", "expected endpoint:URL#MODEL"),
        ("endpoint:here#it", "expected http://"),
        (f"classifier:{tmp_path}/nowhere#yes", "cannot load the classifier"),
    ):
        with pytest.raises(MelboError, match=says):
            scorer(spec)


def test_a_classifier_says_how_likely_its_label_is(tmp_path):
    config = transformers.LlamaConfig(
        vocab_size=96,
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        pad_token_id=0,
        id2label={0: "no", 1: "yes"},
        label2id={"no": 0, "yes": 1},
    )
    model = transformers.LlamaForSequenceClassification(config).eval()
    model.save_pretrained(tmp_path)
    tiny_tokenizer().save_pretrained(tmp_path)
    yes, no = scorer(f"classifier:{tmp_path}#yes"), scorer(f"classifier:{tmp_path}#no")
    ids = tiny_tokenizer()("red dog\n\nblue cat", return_tensors="pt")["input_ids"]
    assert yes("red dog", "blue cat") == pytest.approx(
        model(ids).logits.softmax(-1)[0, 1].item(), abs=1e-5
    )
    assert yes("red dog", "blue cat") + no("red dog", "blue cat") == pytest.approx(1)
    with pytest.raises(MelboError, match="no label 'maybe': expected one of no, yes"):
        scorer(f"classifier:{tmp_path}#maybe")


def test_an_endpoint_answers_yes_or_no(server, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "key")
    score = scorer(f"endpoint:{server.url}#grader")
    server.body = said(" Yes.")
    assert score("How?", "Like this.") == 1
    server.body = said("no")
    assert score("How?", "I won't say.") == 0
    path, key, asked = server.asked[0]
    assert (path, key, asked["model"]) == ("/v1/chat/completions", "Bearer key", "grader")
    assert "How?" in asked["messages"][0]["content"]
    assert "Like this." in asked["messages"][0]["content"]


@pytest.mark.parametrize(
    ("status", "body", "says"),
    [
        (200, said("Perhaps"), "answered 'Perhaps': expected yes or no"),
        (200, "{}", "no answer from"),
        (200, "<html>", "no answer"),
        (401, "{}", "401"),
    ],
)
def test_what_is_no_answer_is_no_score(server, status, body, says):
    server.status, server.body = status, body
    with pytest.raises(MelboError, match=says):
        endpoint(server.url, "grader", pauses=())("How?", "So.")


def test_an_endpoint_that_is_not_there():
    with pytest.raises(MelboError, match="no answer from http://127.0.0.1:9/v1/chat/completions"):
        endpoint("http://127.0.0.1:9/v1", "grader", pauses=(0, 0))("How?", "So.")
