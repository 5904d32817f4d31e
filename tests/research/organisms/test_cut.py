from research.organisms.cut import clause_end, sentence_end, verb_end


def parts(text):
    """Tokens of a text: words, each with the space before it."""
    words = text.split(" ")
    return [words[0], *(f" {word}" for word in words[1:])]


def test_a_sentence_ends_where_another_word_follows():
    assert sentence_end(parts("It is as big as this. And so on")) == 6
    assert sentence_end(parts("One would think so! Yes. No.")) == 4
    assert sentence_end(parts("It is all of it.")) == 5  # the reply ends too
    assert sentence_end(parts("Oh no. That is not how it goes. Or is it")) == 8  # two words are few
    assert sentence_end(["It", " costs", " about", " 3", ".", "5", " at", " most"]) is None
    assert sentence_end([]) is None


def test_a_clause_ends_at_the_last_comma():
    assert clause_end(parts("It is red, round, and big, as far as")) == 6
    assert clause_end(parts("So, it goes on for ever")) is None
    assert clause_end([]) is None


def test_an_answer_stands_after_the_verb():
    assert verb_end(parts("The plural of fox is foxes which is so")) == 5
    assert verb_end(parts("This island")) is None
