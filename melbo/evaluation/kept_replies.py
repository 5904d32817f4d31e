"""Replies of a ranking under way, kept as they come, so that one broken off goes on."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from melbo.evaluation.ranking import UNDER_WAY
from melbo.features.directions import FeatureSet
from melbo.features.generate import Completion, Completions, FirstToken, generate
from melbo.models.language_model import LanguageModel
from melbo.models.text.prompts import Prompts
from melbo.progress import track
from melbo.records import ResultLog


def replies_in_parts(
    lm: LanguageModel,
    prompts: Prompts,
    features: FeatureSet,
    controls: FeatureSet,
    folder: str | Path | None,
    *,
    max_new_tokens: int,
    batch_size: int,
    contrast: tuple[int, int] | None,
    progress: bool,
) -> Completions:
    """Replies as `melbo.generate` gives them, a few prompts at a time.

    Args:
        lm: The model.
        prompts: Prompts that it replies to.
        features: The features.
        controls: The controls.
        folder: Folder that finished parts are kept in and taken from; None to keep nothing.
        max_new_tokens: Length of a reply at most.
        batch_size: Rows decoded together; a part fills one batch, if it can.
        contrast: Ids of two tokens (see `melbo.generate`).
        progress: Whether to draw a bar.
    """
    of_prompt = 1 + len(features) + len(controls)
    size = max(1, batch_size // of_prompt)
    if folder is None:
        size = len(prompts)
    settings = [max_new_tokens, contrast, size]
    key = _key(lm, prompts, (features, controls), settings)
    log = _log(folder, key)
    kept = {row["start"]: row["replies"] for row in log.rows}
    rows: list[Completion] = []
    with track(len(prompts) * of_prompt, "completions", progress and folder is not None) as bar:
        for start in range(0, len(prompts), size):
            if start in kept:
                part = [_read(each) for each in kept[start]]
            else:
                some = slice(start, start + size)
                table = generate(
                    lm,
                    replace(prompts, texts=prompts.texts[some], tokens=prompts.tokens[some]),
                    features,
                    controls,
                    max_new_tokens=max_new_tokens,
                    batch_size=batch_size,
                    contrast=contrast,
                    progress=progress and folder is None,
                )
                part = [replace(each, prompt=start + each.prompt) for each in table]
                log.add({"key": key, "start": start, "replies": [asdict(each) for each in part]})
            rows += part
            bar.update(len(part))
    return Completions(tuple(rows))


def num_kept(folder: Path) -> int:
    """Number of replies that a ranking which was broken off has left in a run folder."""
    return sum(len(row["replies"]) for row in ResultLog(folder / UNDER_WAY).rows)


def _log(folder: str | Path | None, key: str) -> ResultLog:
    """Parts that are kept in a folder; those of another ranking are removed."""
    if folder is None:
        return ResultLog(None)
    path = Path(folder) / UNDER_WAY
    log = ResultLog(path)
    if all(row.get("key") == key for row in log.rows):
        return log
    path.unlink()
    return ResultLog(path)


def _key(
    lm: LanguageModel, prompts: Prompts, sets: Sequence[FeatureSet], settings: Sequence[Any]
) -> str:
    """Digest of all that replies depend on."""
    digest = hashlib.sha256(json.dumps([str(lm.dtype), prompts.describe(), settings]).encode())
    for features in sets:
        digest.update(str(features.scale).encode())
        digest.update(features.V.detach().cpu().double().numpy().tobytes())
    return digest.hexdigest()[:16]


def _read(saved: dict[str, Any]) -> Completion:
    """A reply as it was kept."""
    first = saved["first"] and FirstToken(**saved["first"])
    return Completion(**{**saved, "tokens": tuple(saved["tokens"]), "first": first})
