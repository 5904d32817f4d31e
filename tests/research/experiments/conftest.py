import pytest
from command_line import put

from research.experiments import SampleComplexity

TEXTS = [
    f"{a} {b}"
    for a in ("red dog", "blue cat", "sun is", "how do")
    for b in ("you", "she", "he", "we", "one")
]


@pytest.fixture(scope="session")
def tiny(tmp_path_factory):
    """A tiny model as a checkpoint."""
    folder = tmp_path_factory.mktemp("model") / "tiny"
    put("llama", folder)
    return str(folder)


@pytest.fixture
def small(tmp_path, tiny):
    """The experiment on a tiny model."""
    (tmp_path / "prompts.txt").write_text("\n".join(TEXTS))
    return SampleComplexity(
        model=tiny,
        prompts=str(tmp_path / "prompts.txt"),
        contrast=("yes", "no"),
        recipes=("exponential", "linear", "random"),
        numbers=(1, 2),
        shuffles=2,
        num_factors=4,
        source=1,
        target=3,
        validation=3,
        test=4,
    )


@pytest.fixture
def alike(small):
    """Settings that the experiments on replies share."""
    return {
        "model": small.model,
        "prompts": small.prompts,
        "shuffles": 2,
        "test": 4,
        "source": 1,
        "target": 3,
        "number": 1,
    }


@pytest.fixture
def pairs(tmp_path):
    """A file of prompts and answers."""

    def write(answers):
        lines = (f"{text}\t{answer}\n" for text, answer in zip(TEXTS, answers, strict=True))
        (tmp_path / "pairs.tsv").write_text("".join(lines))
        return str(tmp_path / "pairs.tsv")

    return write
