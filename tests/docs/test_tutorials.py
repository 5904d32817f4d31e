"""Pages with commands, run from top to bottom as their readers run them."""

import subprocess
import sys
from pathlib import Path

import pytest
from command_line import environment
from sybil.document import Document
from sybil.example import SybilFailure
from sybil.parsers.markdown import CodeBlockParser, PythonCodeBlockParser

import melbo

ROOT = Path(melbo.__file__).parents[1]
PAGES = [ROOT / "docs" / "start.md", *sorted((ROOT / "docs" / "tutorials").glob("[a-z]*.md"))]


class Shell(CodeBlockParser):
    """Blocks of ``bash``, each in a shell of its own that stops at the first failure."""

    language = "bash"

    def evaluate(self, example):
        path = f"{Path(sys.executable).parent}:{environment()['PATH']}"
        done = subprocess.run(
            ["bash", "-euo", "pipefail", "-c", example.parsed],
            capture_output=True,
            encoding="utf-8",
            env={**environment(), "PATH": path},
        )
        print(done.stdout, done.stderr, sep="\n")
        return f"exit code {done.returncode}: {done.stderr}" if done.returncode else ""


def run(page):
    """Run the blocks of a page in order, in one namespace, in the folder that is current.

    Returns:
        Number of blocks.
    """
    parsers = [PythonCodeBlockParser(), Shell()]
    document = Document.parse(str(page), *parsers)
    examples = list(document.examples())
    for example in examples:
        example.evaluate()
    return len(examples)


def test_blocks_run_in_order_and_failures_are_seen(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    page = tmp_path / "page.md"
    good = "```python\nfrom pathlib import Path\n```\n```bash\necho $((1 + 1)) > two\n```\n"
    good += "```\nnot run(\n```\n"
    page.write_text(good + "```python\nx = Path('two').read_text()\nassert x == '2\\n'\n```\n")
    assert run(page) == 3
    for wrong in ("bash\nfalse | true", "python\nassert not Path('two').is_file()"):
        page.write_text(f"{good}```{wrong}\n```\n")
        with pytest.raises((AssertionError, SybilFailure)):
            run(page)


@pytest.mark.slow
@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_pages_run_from_top_to_bottom(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    # models with planted behaviours, and text, are named by their places in a checkout
    for name in ("research", "docs"):
        (tmp_path / name).symlink_to(ROOT / name)
    assert run(page) > 2
