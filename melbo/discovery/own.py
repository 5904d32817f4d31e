"""Functions of the user's own, from files; and the elicitor that calls one."""

import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from melbo.discovery.candidates import Candidates
from melbo.errors import MelboError
from melbo.models.language_model import LanguageModel, first_line
from melbo.models.text.prompts import Prompts

_NEEDED = ("__len__", "only", "replies", "describe")


def load_function(spec: str) -> Callable[..., Any]:
    """A function of the user's own.

    Args:
        spec: ``"FILE.py:NAME"``.

    Raises:
        MelboError: There is no such file or function, or the file cannot be run.
    """
    path, _, name = spec.rpartition(":")
    if not path or not Path(path).is_file():
        raise MelboError(
            f"got the function {spec!r}: expected FILE.py:NAME with a file that is there"
        )
    located = importlib.util.spec_from_file_location(Path(path).stem, path)
    if located is None or located.loader is None:
        raise MelboError(f"{path} is not a Python file: expected FILE.py:NAME")
    module = importlib.util.module_from_spec(located)
    try:
        located.loader.exec_module(module)
    except Exception as err:  # the user's code, which may fail in any way
        raise MelboError(f"{path} cannot be run ({type(err).__name__}: {err})") from err
    found: Any = getattr(module, name, None)
    if not callable(found):
        raise MelboError(f"{path} has no function {name!r}: expected FILE.py:NAME")
    function: Callable[..., Any] = found
    return function


@dataclass(frozen=True)
class Own:
    """Elicitor: a function of the user's own, (lm, prompts, num, seed) → `Candidates`.

    The work of finding them is not counted. A file with one::

        from melbo.discovery.steered import Steered
        from melbo.features.saved import load_features


        def from_run(lm, prompts, num, seed):
            return Steered(load_features("runs/cake", lm)[:num], strength=0.5)

    Attributes:
        function: The function.
        name: Name of the elicitor.
        description: The same in words.
    """

    function: Callable[..., Any]
    name: str = "own"
    description: str = "a function of the user's own"

    @classmethod
    def of(cls, spec: str) -> "Own":
        """Read a function from a file; its name becomes that of the elicitor.

        Args:
            spec: ``"FILE.py:NAME"``.

        Raises:
            MelboError: As `load_function`.
        """
        function = load_function(spec)
        said = (getattr(function, "__doc__", None) or "").strip().partition("\n")[0]
        return cls(function, spec.rpartition(":")[2], said or f"the user's own: {spec}")

    def candidates(
        self, lm: LanguageModel, prompts: Prompts, num: int, seed: int, progress: bool
    ) -> tuple[Candidates, float]:
        """See `Elicitor.candidates`.

        Raises:
            MelboError: The function fails, or what it returns are no candidates, or none.
        """
        try:
            found: Any = self.function(lm, prompts, num, seed)
        except MelboError:
            raise
        except Exception as err:  # the user's code, which may fail in any way
            raise MelboError(
                f"the elicitor {self.name} failed ({type(err).__name__}: {first_line(err)})"
            ) from err
        lacking = [name for name in _NEEDED if not callable(getattr(found, name, None))]
        if lacking or not len(found):
            why = f"without {', '.join(lacking)}" if lacking else "with no candidate in it"
            raise MelboError(
                f"the elicitor {self.name} returned a {type(found).__name__} {why}: expected "
                "candidates (see melbo.discovery.candidates.Candidates)"
            )
        candidates: Candidates = found if len(found) <= num else found.only(range(num))
        return candidates, 0.0
