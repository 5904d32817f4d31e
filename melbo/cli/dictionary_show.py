"""Lines that the commands for dictionaries print."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import click

from melbo.cli.terminal import next_step, tell
from melbo.dictionary.base import Dictionary
from melbo.dictionary.inspection import Inspection
from melbo.dictionary.matching import Matches
from melbo.dictionary.neighbours import Neighbours
from melbo.dictionary.origin import Origin
from melbo.dictionary.training import Course
from melbo.dictionary.training_run import Trained
from melbo.features.directions import FeatureSet


def show_trained(trained: Sequence[Trained], course: Course, folders: Sequence[Path]) -> None:
    """Print how good dictionaries are on held-out text, and where they lie.

    Args:
        trained: The dictionaries.
        course: Account of their training.
        folders: Their folders.
    """
    tell(
        f"{course.tokens} tokens in {course.seconds:.0f} s, "
        f"{course.tokens / course.seconds:.0f} a second; on held-out text:"
    )
    for each, place, dead in zip(trained, folders, course.dead, strict=True):
        m = len(each.dictionary.b_enc)
        tell(f"layer {each.origin.layer}: {_quality(each.inspection)}")
        tell(f"  {dead} of {m} latents had been silent for long when training ended")
        click.echo(f"  saved to {place}")
    next_step("dictionary", "inspect", folders[0], "--text", "FILE")


def show_inspection(
    dictionary: Dictionary, origin: Origin, geometry: Neighbours, on_text: Inspection | None
) -> None:
    """Print geometry and quality of a dictionary, and snippets of some latents.

    Args:
        dictionary: The dictionary.
        origin: The model and the layer that it is of.
        geometry: Geometry of its directions.
        on_text: Its quality on text, where there is text.
    """
    m, d = dictionary.W_dec.shape
    kind = type(dictionary).__name__
    of = f"{origin.model_name or 'an unnamed model'}, layer {origin.layer}"
    tell(f"{kind}, {m} latents of width {d}, of {of}")
    if on_text is not None:
        tell(f"on {on_text.quality.tokens} tokens: {_quality(on_text)}")
    told = geometry.describe()
    tell("k-th largest cosine of a direction, mean (random directions):")
    own, chance = told["cosines"]["directions"], told["cosines"]["random"]
    tell("  " + "; ".join(f"k = {k}: {own[k]:.3f} ({chance[k]:.3f})" for k in own))
    hubs = told["hubs"]["directions"]
    tell(
        f"{hubs['near']:.1%} have a neighbour at cosine {hubs['threshold']} or more; "
        f"{hubs['largest_hub']} share the most common one"
    )
    tell(f"mean squared cosine {told['penalty']:.3g}, Welch floor {told['floor']:.3g}")
    for latent, several in ({} if on_text is None else on_text.snippets).items():
        tell(f"\nlatent {latent}" + ("" if several else ": never active"))
        for s in several:
            line = " ".join(f"{s.before}[{s.token}]{s.after}".split())
            tell(f"  {s.value:8.3g}  {line}")


def show_matches(matches: Mapping[str, Matches], features: FeatureSet, origin: Origin) -> None:
    """Print how near the directions of a run come to those of a dictionary.

    Args:
        matches: Matches of V and of U.
        features: Features of the run.
        origin: The model and the layer that the dictionary is of.
    """
    layers = {"V": features.source, "U": features.target}
    for name, found in matches.items():
        told = found.describe()
        tell(
            f"{name} (layer {layers[name]}) in the dictionary of layer {origin.layer}: "
            f"best |cos| {told['mean']:.3f} in the mean, {told['largest']:.3f} at most"
        )
        for null, values in told["nulls"].items():
            tell(
                f"  {null}: {values['mean']:.3f} in the mean; "
                f"{values['above']:.0%} of {len(found.cosine)} are beyond it at p ≤ .05"
            )
        for i in found.cosine.argsort(descending=True)[:5].tolist():
            tell(f"  feature {i}: latent {found.latent[i]}, |cos| {found.cosine[i]:.3f}")


def _quality(found: Inspection) -> str:
    """Quality on text, in one line."""
    q, losses = found.quality, found.losses
    recovered = "" if losses is None else f", cross-entropy recovered {losses.recovered:.1%}"
    return (
        f"variance explained {q.variance_explained:.1%}, L0 {q.l0:.1f}{recovered}, "
        f"dead {q.dead:.1%}, γ {q.gamma:.3f}"
    )
