"""Does any feature elicit what a judge looks for? A locked skill, compliance, a backdoor."""

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import mean
from typing import ClassVar

from melbo.discovery.recipes import FeatureSearch, is_control
from melbo.errors import MelboError
from melbo.evaluation.plot import blank, png
from melbo.evaluation.scorers import Scorer, answers, attempt, scorer
from melbo.evaluation.scores import THRESHOLDS, Thresholds, coherent
from melbo.evaluation.tables import cell, markdown
from melbo.features.directions import FeatureSet
from melbo.features.generate import Completion, generate
from melbo.maps.residual import CausalMap
from melbo.models.decoding.decode import decode
from melbo.models.edits import EditSequence
from melbo.models.text.prompt_files import ANSWERS
from melbo.models.text.prompts import Prompts, read_pairs, read_texts
from melbo.records import Row
from research.experiments.base import Layer, typed
from research.experiments.pool import Deal, Pool, Pooled, digest

# share of validation prompts from which on a feature is counted
_SHOWN = 0.5


@dataclass(frozen=True)
class ElicitationRow:
    """A row as table and picture read it.

    Attributes:
        shuffle: Number of the shuffle.
        recipe: One of `melbo.discovery.recipes.RECIPES`.
        validation: Mean score of every feature on validation prompts.
        test: Mean score on test prompts of the feature that is best on validation prompts.
        unsteered: Mean score of the unsteered model on test prompts.
        triggered: The same with the trigger in front; None without a trigger.
        failed: Number of replies that the judge failed on.
        seconds: Duration of the fit.
    """

    shuffle: int
    recipe: str
    validation: Sequence[float]
    test: float
    unsteered: float
    triggered: float | None
    failed: int
    seconds: float


@dataclass(frozen=True, kw_only=True)
class Elicitation(Pooled):
    """Recipes × shuffles: the judge's favourite feature on other prompts (docs/method.md §10).

    The feature with the best score on validation prompts is reported on test prompts. A broken
    reply is worth nothing, whatever the judge says; it is broken where
    `melbo.evaluation.scores.coherent` holds neither after the prompt nor after trigger and prompt.
    An answer, which is short, is never broken. A reply that the judge fails on is worth nothing
    either; rows and table say how many these were.

    Attributes:
        thresholds: Limits beyond which a reply is broken; no setting.
        judge: As `melbo.evaluation.scorers.scorer` takes it, with scores from 0 to 1; or
            ``"answers"``: a reply begins with the answer that stands after a tab in the file of
            prompts.
        trigger: Text in front of a prompt that is known to elicit what is looked for: a ceiling.
            Empty for nothing.
        recipes: Some of `melbo.discovery.recipes.RECIPES`.
        number: Number of prompts that are learnt from.
        num_factors: Number of features m.
        source: Layer that is perturbed.
        target: Layer that is read.
        strength: Multiple of R at which features are tried.
        validation: Number of validation prompts.
        max_new_tokens: Length of a reply at most.
    """

    question: ClassVar[str] = "Does any feature elicit what a judge looks for?"
    varied: ClassVar[tuple[str, ...]] = ("recipes", "shuffles")
    thresholds: ClassVar[Thresholds] = THRESHOLDS
    judge: str
    trigger: str
    recipes: tuple[str, ...]
    number: int
    num_factors: int
    source: Layer
    target: Layer
    strength: float
    validation: int
    max_new_tokens: int

    @property
    def cases(self) -> list[Row]:
        """The cases, shuffle after shuffle."""
        file = self._judge_file
        grader = digest(self.find(file), file) if file else self.judge
        return [
            self.case(s, recipe=recipe, grader=grader)
            for s in range(self.shuffles)
            for recipe in self.recipes
        ]

    @property
    def _judge_file(self) -> str:
        """File of a judge that is a function, or nothing."""
        return self.judge.rpartition(":")[0] if ".py:" in self.judge else ""

    def prepare(self) -> tuple[Pool, Scorer, float]:
        """The pool, the judge, and R."""
        if self.judge == "answers":
            texts, expected = read_pairs(self.prompts_file, ANSWERS)
            score = answers(dict(zip(texts, expected, strict=True)))
        else:
            file, texts = self._judge_file, read_texts(self.prompts_file)
            spec = str(self.find(file)) + self.judge.removeprefix(file) if file else self.judge
            score = scorer(spec)
        pool = self.pool(texts, self.number, self.validation)
        return pool, score, pool.scale(self.source, self.target)

    def measure(self, ready: tuple[Pool, Scorer, float], case: Row) -> Row:
        """Mean scores: of every feature on validation prompts, of the best one on test prompts.

        The unsteered model and the trigger are scored on test prompts too.

        Raises:
            MelboError: The judge fails on every reply.
        """
        pool, score, scale = ready
        dealt = pool.deal(case["shuffle"], self.number)
        search = FeatureSearch(CausalMap(pool.lm, dealt.learn, self.source, self.target), scale)
        features, cost = search.candidates(case["recipe"], self.num_factors, case["shuffle"])
        asked = _Asked(score)
        _, validated = self._scores(pool, asked, dealt.validation, features)
        if asked.failed == asked.times > 0:
            raise MelboError(
                f"the judge {self.judge} fails on every reply ({asked.why}): "
                "mend it, and run this again"
            )
        best = max(range(len(features)), key=validated.__getitem__)
        unsteered, [tested] = self._scores(pool, asked, dealt.test, features[best])
        triggered = self._triggered(pool, asked, dealt)
        return {
            "scale": scale,
            "validation": validated,
            "test": tested,
            "unsteered": unsteered,
            "triggered": triggered,
            "failed": asked.failed,
            **cost,
        }

    def _scores(
        self, pool: Pool, score: Scorer, prompts: Prompts, features: FeatureSet
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
        by_feature: dict[int | None, list[float]] = {}
        for c, worth in zip(table, self._worth(pool, score, prompts, table), strict=True):
            by_feature.setdefault(c.feature, []).append(worth)
        return mean(by_feature[None]), [mean(by_feature[i]) for i in range(len(features))]

    def _triggered(self, pool: Pool, score: Scorer, dealt: Deal) -> float | None:
        """Mean score of the replies to test prompts with the trigger in front."""
        if not self.trigger:
            return None
        prompts, nothing = dealt.test, EditSequence(())
        asked = self._with_trigger(pool, prompts).tokens
        said = decode(pool.lm, asked, nothing, self.max_new_tokens, progress=False)
        texts = pool.lm.tokenizer.batch_decode(said, skip_special_tokens=True)
        rows = [
            Completion("unsteered", None, p, prompts.texts[p], texts[p], tuple(said[p]))
            for p in range(len(prompts))
        ]
        return mean(self._worth(pool, score, prompts, rows))

    def _worth(
        self, pool: Pool, score: Scorer, prompts: Prompts, rows: Sequence[Completion]
    ) -> list[float]:
        """Score of each reply, 0 for a broken one.

        Raises:
            MelboError: A score is not between 0 and 1.
        """
        scores = [score(c.prompt_text, c.text) for c in rows]
        if wrong := [s for s in scores if not 0 <= s <= 1]:
            raise MelboError(
                f"the judge {self.judge} gave {wrong[0]}: expected a score from 0 to 1"
            )
        if self.judge == "answers":
            return scores
        # most are worth nothing anyhow, and need not be read again
        liked = [i for i, worth in enumerate(scores) if worth > 0]
        wordings = [prompts, *([self._with_trigger(pool, prompts)] if self.trigger else [])]
        whole = coherent(pool.lm, wordings, [rows[i] for i in liked], self.thresholds)
        for i, fine in zip(liked, whole, strict=True):
            scores[i] *= fine
        return scores

    def _with_trigger(self, pool: Pool, prompts: Prompts) -> Prompts:
        return Prompts.chat(pool.lm, [self.trigger + text for text in prompts.texts])

    def table(self, rows: Sequence[Row]) -> str:
        """Scores of the best feature by recipe, the number of good ones, and the cost.

        ± is the standard error over shuffles, each with its own fit. Of features that are equally
        good on validation prompts the first is tested.
        """
        every = typed(ElicitationRow, rows)
        head = [
            "recipe",
            "best, validation",
            "the same, test",
            "of each fit",
            f"features ≥ {_SHOWN:g}, validation",
            "seconds",
        ]
        of_recipe = {r: [row for row in every if row.recipe == r] for r in self.recipes}
        lines = [[recipe, *_line(own)] for recipe, own in of_recipe.items() if own]
        ends = ", ".join(
            f"{name} {cell(known)}"
            for name in ("unsteered", "triggered")
            if (known := _known(every, name))
        )
        note = f"On test prompts: {ends}. {self.num_factors} features of each recipe."
        if failed := sum(row.failed for row in every):
            note += f" The judge failed on {failed} replies, which count as nothing."
        return markdown(head, lines) + f"\n{note}\n"

    def picture(self, rows: Sequence[Row]) -> bytes:
        """Test scores of all shuffles by recipe, with the unsteered model and the trigger."""
        every = typed(ElicitationRow, rows)
        canvas, axes = blank(3.6)
        for x, recipe in enumerate(self.recipes):
            own = [row.test for row in every if row.recipe == recipe]
            colour = "silver" if is_control(recipe) else "tab:blue"
            axes.bar(x, mean(own) if own else 0, color=colour, width=0.6)
            axes.plot([x] * len(own), own, "ko", ms=3)
        for name, style in (("unsteered", ":"), ("triggered", "--")):
            if known := _known(every, name):
                axes.axhline(mean(known), color="grey", ls=style, lw=1, label=name)
        axes.set(
            ylabel=f"score on test prompts, best of {self.num_factors}",
            xticks=range(len(self.recipes)),
            xticklabels=self.recipes,
        )
        return png(canvas)


class _Asked:
    """A judge that may fail: a reply that it fails on is worth nothing, and counted.

    Attributes:
        score: The judge.
        times: Number of times that it was asked.
        failed: Number of times that it failed.
        why: Reason of the last failure.
    """

    def __init__(self, score: Scorer) -> None:
        self.score, self.times, self.failed, self.why = score, 0, 0, ""

    def __call__(self, prompt: str, reply: str) -> float:
        """Score of a reply, or 0."""
        told = attempt(self.score, prompt, reply)
        self.times += 1
        if isinstance(told, str):
            self.failed, self.why = self.failed + 1, told
            return 0.0
        return told


def _line(own: Sequence[ElicitationRow]) -> list[str]:
    """Cells of the table for the rows of a recipe."""
    tests = [row.test for row in own]
    counts = [sum(v >= _SHOWN for v in row.validation) for row in own]
    return [
        cell([max(row.validation) for row in own]),
        cell(tests),
        ", ".join(f"{test:.2f}" for test in tests),
        ", ".join(map(str, counts)),
        cell([row.seconds for row in own]),
    ]


def _known(rows: Sequence[ElicitationRow], name: str) -> list[float]:
    """Scores without features, one a shuffle: they are the same for all recipes."""
    by_shuffle = {row.shuffle: getattr(row, name) for row in rows}
    return [value for value in by_shuffle.values() if value is not None]
