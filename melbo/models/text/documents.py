"""Files of text to read as it stands: a document a file, or one a line of JSON."""

from collections.abc import Sequence
from pathlib import Path

from melbo.errors import MelboError
from melbo.models.text.prompt_files import read_texts


def read_documents(paths: Sequence[str | Path]) -> list[str]:
    """Read texts from files.

    A file is one text. In a file whose name ends in ``.jsonl`` each line is one: a string or
    ``{"text": …}``.

    Args:
        paths: The files, one or more.

    Raises:
        MelboError: There is no file, or one cannot be read, is not UTF-8 or holds no text.
    """
    if not paths:
        raise MelboError("got no text: give one file or more")
    texts: list[str] = []
    for path in map(Path, paths):
        if path.suffix == ".jsonl":
            texts += read_texts(path)
            continue
        try:
            text = path.read_text(encoding="utf-8")
        except OSError as err:
            raise MelboError(f"cannot read {path} ({err.strerror}): give another file") from err
        except UnicodeDecodeError as err:
            raise MelboError(f"{path} is not UTF-8 ({err.reason}): save it as UTF-8") from err
        if not text.strip():
            raise MelboError(f"{path} is empty: give a file with text")
        texts.append(text)
    return texts
