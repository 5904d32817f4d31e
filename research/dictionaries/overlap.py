"""Directions of a transcoder beside those of dictionaries: near neighbours, and each other."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from melbo import CausalMap, Exponential, LanguageModel, Prompts, calibrate, fit
from melbo.dictionary import Dictionary, best_matches
from melbo.dictionary.matching import FEWEST
from melbo.dictionary.neighbours import Neighbours
from melbo.evaluation.tables import markdown
from melbo.models.text import built_in
from melbo.models.weights.fingerprint import fingerprint
from melbo.records import ResultLog, Row, environment
from research.dictionaries import RESULTS
from research.dictionaries.trained import of_layer

VERSION = 1
ROWS = RESULTS / "overlap.jsonl"


@dataclass(frozen=True)
class Overlap:
    """An exponential transcoder of a model, to be compared with dictionaries.

    Attributes:
        source: Layer that V is added at.
        target: Layer that U is read at.
        num_factors: Number of directions.
        prompt: The prompt.
        seed: Random seed of the fit, of random directions and of the nulls.
        draws: Draws of each null.
    """

    source: int = 8
    target: int = 20
    num_factors: int = 64
    prompt: str = built_in.FIT[0]
    seed: int = 0
    draws: int = FEWEST

    def measure(
        self, lm: LanguageModel, log: ResultLog, at_source: Path, at_target: Path | None = None
    ) -> Row:
        """Fit and compare, unless there is a row of it already.

        Args:
            lm: The model.
            log: The rows.
            at_source: Folder of a dictionary of the source layer.
            at_target: Folder of a dictionary of the target layer, if there is one.

        Raises:
            MelboError: A folder holds no dictionary, or one of another model or layer.
        """
        found = {"V": of_layer(lm, at_source, self.source)}
        if at_target is not None:
            found["U"] = of_layer(lm, at_target, self.target)
        key = {
            "version": VERSION,
            **asdict(self),
            "dictionaries": {name: fingerprint(each) for name, each in found.items()},
        }
        if not log.of(key):
            log.add({**key, **self._compared(lm, found), "environment": environment()})
        return log.of(key)[0]

    def _compared(self, lm: LanguageModel, found: Mapping[str, Dictionary]) -> Row:
        """Geometry of all directions, and V and U among those of the dictionary of their layer."""
        cmap = CausalMap(lm, Prompts.chat(lm, [self.prompt]), self.source, self.target)
        scale = calibrate(cmap).scale
        fitted = fit(cmap, Exponential(self.num_factors, scale), seed=self.seed)
        learnt = {"V": fitted.features.V.cpu(), "U": fitted.features.U.cpu()}
        decoders = {name: each.W_dec.detach() for name, each in found.items()}
        named = {**{f"W_dec of {name}": W for name, W in decoders.items()}, **learnt}
        return {
            "model": lm.describe(),
            "scale": scale,
            "status": fitted.status.name.lower(),
            "shapes": {name: list(W.shape) for name, W in named.items()},
            "geometry": {name: Neighbours.of(W, self.seed).describe() for name, W in named.items()},
            "matches": {
                name: best_matches(learnt[name], W, self.draws, self.seed).describe()
                for name, W in decoders.items()
            },
        }


def page_tables() -> dict[str, str]:
    """Tables that pages may quote, by name, made from the last of the committed rows."""
    rows = [row for row in ResultLog(ROWS).rows if row["version"] == VERSION]
    if not rows:
        return {}
    last = rows[-1]
    layers = {"V": last["source"], "U": last["target"]}
    names = {
        **{f"W_dec of {name}": f"decoder, layer {at}" for name, at in layers.items()},
        **{name: f"{name}, layer {at}" for name, at in layers.items()},
    }
    near = [
        [names[name], "×".join(map(str, last["shapes"][name])), *_geometry(found)]
        for name, found in last["geometry"].items()
    ]
    matched = [
        [f"{names[name]} in the decoder of layer {layers[name]}", *_match(found)]
        for name, found in last["matches"].items()
    ]
    return {
        "dictionaries-overlap": markdown(
            (
                "directions",
                "shape",
                "k = 1 (random)",
                "k = 10 (random)",
                "k = 100 (random)",
                "a neighbour at .3 (random)",
                "share one (of those)",
                "mean cos²",
                "Welch floor",
            ),
            near,
        ),
        "dictionaries-matches": markdown(
            (
                "",
                "best cosine",
                "largest",
                "different latents",
                "covariance null",
                "beyond",
                "rotated null",
                "beyond",
            ),
            matched,
        ),
    }


def _geometry(found: Mapping[str, Any]) -> list[str]:
    """Cells of a set of directions."""
    own, chance = found["cosines"]["directions"], found["cosines"]["random"]
    hubs, random_hubs = found["hubs"]["directions"], found["hubs"]["random"]
    return [
        *(f"{own[k]:.3f} ({chance[k]:.3f})" if k in own else "–" for k in ("1", "10", "100")),
        f"{hubs['near']:.1%} ({random_hubs['near']:.1%})",
        f"{hubs['largest_hub']} ({hubs['largest_hub_share']:.1%})",
        f"{found['penalty']:.2g}",
        f"{found['floor']:.2g}",
    ]


def _match(found: Mapping[str, Any]) -> list[str]:
    """Cells of directions among those of a dictionary."""
    different = f"{len(set(found['latent']))} of {len(found['latent'])}"
    cells = [f"{found['mean']:.3f}", f"{found['largest']:.3f}", different]
    for null in ("covariance", "rotated"):
        values = found["nulls"][null]
        cells += [f"{values['mean']:.3f}", f"{values['above']:.0%}"]
    return cells
