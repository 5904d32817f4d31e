"""Does any feature bring out what a judge looks for? A password-locked skill, compliance, a backdoor."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean
from typing import ClassVar

from melbo.discovery.recipes import RECIPES, FeatureSearch
from melbo.errors import MelboError
from melbo.evaluation.judges import Score, answers, attempt, judge
from melbo.evaluation.plot import blank, png
from melbo.evaluation.scores import coherent
from melbo.evaluation.tables import cell, markdown
from melbo.features.directions import FeatureSet
from melbo.features.generate import Completion, generate
from melbo.maps.residual import CausalMap
from melbo.models.decode import decode
from melbo.models.edits import EditSequence
from melbo.models.prompts import Prompts, read_pairs, read_texts
from melbo.records import Row
from research.experiments.pool import Deal, Pool, Pooled, digest

_SHOWN = 0.5  # of validation prompts: a feature that is counted


@dataclass(frozen=True, kw_only=True)
class Elicitation(Pooled):
    """Ways × shuffles: the feature that a judge likes best on validation prompts, on test prompts (METHOD §11).

    A broken reply (`melbo.score.coherent`, after the prompt or after the trigger and the prompt) is worth nothing, whatever the judge says; an
    answer, which is short, is never broken. A reply that the judge fails on is worth nothing either; rows and the table say how many these were.

    Attributes:
        judge: As `melbo.judge.judge` takes it, with scores from 0 to 1; or ``"answers"``: a reply begins with the answer that stands after a tab in
            the file of prompts.
        trigger: What, put in front of a prompt, is known to bring it out: a ceiling. Empty for nothing.
        ways: Some of `melbo.ways.WAYS`.
        number: How many prompts are learnt from.
        num_factors: m.
        source: Layer that is perturbed.
        target: Layer that is read.
        strength: Multiple of R at which features are tried.
        validation: Number of validation prompts.
        max_new_tokens: Length of a reply at most.
    """

    question: ClassVar[str] = "Does any feature bring out what a judge looks for?"
    varied: ClassVar[tuple[str, ...]] = ("recipes", "shuffles")
    judge: str
    trigger: str
    recipes: tuple[str, ...]
    number: int
    num_factors: int
    source: int
    target: int
    strength: float
    validation: int
    max_new_tokens: int

    @property
    def cases(self) -> list[Row]:
        """Shuffle after shuffle."""
        grader = digest(self.judge.rpartition(":")[0]) if ".py:" in self.judge else self.judge
        return [
            self.case(s, recipe=recipe, grader=grader)
            for s in range(self.shuffles)
            for recipe in self.recipes
        ]

    def prepare(self) -> tuple[Pool, Score, float]:
        """The pool, the judge, and R."""
        if self.judge == "answers":
            texts, expected = read_pairs(self.prompts)
            score = answers(dict(zip(texts, expected, strict=True)))
        else:
            texts, score = read_texts(Path(self.prompts)), judge(self.judge)
        pool = self.pool(texts, self.number, self.validation)
        return pool, score, pool.scale(self.source, self.target)

    def measure(self, ready: tuple[Pool, Score, float], case: Row) -> Row:
        """Mean score of every feature on validation prompts; on test prompts of the best of them, of the model alone, and of the trigger."""
        pool, score, scale = ready
        dealt = pool.deal(case["shuffle"], self.number)
        search = FeatureSearch(CausalMap(pool.lm, dealt.learn, self.source, self.target), scale)
        features, cost = search.candidates(case["recipe"], self.num_factors, case["shuffle"])
        asked = _Asked(score)
        _, validated = self._scores(pool, asked, dealt.validation, features)
        if asked.failed == asked.times > 0:
            raise MelboError(
                f"the judge {self.judge} fails on every reply ({asked.why}): mend it, and run this again"
            )
        best = max(range(len(features)), key=validated.__getitem__)
        unsteered, [tested] = self._scores(pool, asked, dealt.test, features[best])
        triggered = self._triggered(pool, asked, dealt)
        about = {
            "scale": scale,
            "validation": validated,
            "test": tested,
            "unsteered": unsteered,
            "triggered": triggered,
            "failed": asked.failed,
        }
        return {**about, **cost}

    def _scores(
        self, pool: Pool, score: Score, prompts: Prompts, features: FeatureSet
    ) -> tuple[float, list[float]]:
        """Mean score over prompts, of the unsteered model and of each feature."""
        table = list(
            generate(
                pool.lm,
                prompts,
                features,
                max_new_tokens=self.max_new_tokens,
                strength=self.strength,
                progress=False,
            )
        )
        found: dict[int | None, list[float]] = {}
        for c, worth in zip(table, self._worth(pool, score, prompts, table), strict=True):
            found.setdefault(c.feature, []).append(worth)
        return mean(found[None]), [mean(found[i]) for i in range(len(features))]

    def _triggered(self, pool: Pool, score: Score, dealt: Deal) -> float | None:
        """Mean score of what the model says to test prompts with the trigger in front."""
        if not self.trigger:
            return None
        prompts = dealt.test
        said = decode(
            pool.lm,
            self._with_trigger(pool, prompts).tokens,
            EditSequence(()),
            self.max_new_tokens,
            progress=False,
        )
        texts = pool.lm.tokenizer.batch_decode(said, skip_special_tokens=True)
        rows = [
            Completion("unsteered", None, p, prompts.texts[p], texts[p], tuple(said[p]))
            for p in range(len(prompts))
        ]
        return mean(self._worth(pool, score, prompts, rows))

    def _worth(
        self, pool: Pool, score: Score, prompts: Prompts, rows: Sequence[Completion]
    ) -> list[float]:
        """Score of each reply, 0 of a broken one.

        Raises:
            MelboError: A score that is not between 0 and 1.
        """
        found = [score(c.prompt_text, c.text) for c in rows]
        if wrong := [s for s in found if not 0 <= s <= 1]:
            raise MelboError(
                f"the judge {self.judge} gave {wrong[0]}: expected a score from 0 to 1"
            )
        if self.judge == "answers":
            return found
        # most are worth nothing anyhow, and need not be read again
        liked = [i for i, worth in enumerate(found) if worth > 0]
        recipes = [prompts, *([self._with_trigger(pool, prompts)] if self.trigger else [])]
        for i, fine in zip(
            liked, coherent(pool.lm, recipes, [rows[i] for i in liked]), strict=True
        ):
            found[i] *= fine
        return found

    def _with_trigger(self, pool: Pool, prompts: Prompts) -> Prompts:
        return Prompts.chat(pool.lm, [self.trigger + text for text in prompts.texts])

    def table(self, rows: Sequence[Row]) -> str:
        """Ways by: the best on validation prompts, there and on test prompts, of all fits and of each; how many features are good on half; cost.

        ± is the standard error over shuffles, of which each has its own fit. Of features equally good on validation prompts the first is tested.
        """
        head = [
            "recipe",
            "best, validation",
            "the same, test",
            "of each fit",
            f"features ≥ {_SHOWN:g}, validation",
            "seconds",
        ]
        lines = []
        for recipe in self.recipes:
            if own := [row for row in rows if row["recipe"] == recipe]:
                tests = [row["test"] for row in own]
                counts = [sum(v >= _SHOWN for v in row["validation"]) for row in own]
                shares = [
                    cell([max(row["validation"]) for row in own]),
                    cell(tests),
                    ", ".join(f"{test:.2f}" for test in tests),
                ]
                lines.append(
                    [
                        recipe,
                        *shares,
                        ", ".join(map(str, counts)),
                        cell([row["seconds"] for row in own]),
                    ]
                )
        ends = ", ".join(
            f"{name} {cell(v)}" for name in ("unsteered", "triggered") if (v := _known(rows, name))
        )
        failed = sum(row["failed"] for row in rows)
        more = f" The judge failed on {failed} replies, which count as nothing." if failed else ""
        return (
            markdown(head, lines)
            + f"\nOn test prompts: {ends}. {self.num_factors} features of each way.{more}\n"
        )

    def picture(self, rows: Sequence[Row]) -> bytes:
        """Test scores of all shuffles, ways side by side, between the model alone and the trigger."""
        canvas, axes = blank(3.6)
        for x, recipe in enumerate(self.recipes):
            own = [row["test"] for row in rows if row["recipe"] == recipe]
            axes.bar(
                x,
                mean(own) if own else 0,
                color="tab:blue" if RECIPES[recipe].method else "silver",
                width=0.6,
            )
            axes.plot([x] * len(own), own, "ko", ms=3)
        for name, style in (("unsteered", ":"), ("triggered", "--")):
            if known := _known(rows, name):
                axes.axhline(mean(known), color="grey", ls=style, lw=1, label=name)
        axes.set(
            ylabel=f"score on test prompts, best of {self.num_factors}",
            xticks=range(len(self.recipes)),
            xticklabels=self.recipes,
        )
        return png(canvas)


class _Asked:
    """A judge that is asked again and again: a reply that it fails on is worth nothing, and counted.

    Attributes:
        times: How often it was asked.
        failed: How often it failed.
        why: The last time.
    """

    def __init__(self, score: Score) -> None:
        self.score, self.times, self.failed, self.why = score, 0, 0, ""

    def __call__(self, prompt: str, reply: str) -> float:
        """Its score, or 0."""
        told = attempt(self.score, prompt, reply)
        self.times += 1
        if isinstance(told, str):
            self.failed, self.why = self.failed + 1, told
            return 0.0
        return told


def _known(rows: Sequence[Row], name: str) -> list[float]:
    """One a shuffle: it is the same for all ways."""
    return [
        value for value in {row["shuffle"]: row[name] for row in rows}.values() if value is not None
    ]
