"""Find hidden behaviours of language models without labels.

Names are imported when they are first used, so that `import melbo` itself takes no time.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from melbo.audit.audit import Audit as Audit
    from melbo.audit.parts import Parts as Parts
    from melbo.discovery.contrastive import caa as caa
    from melbo.discovery.fit import Fit as Fit
    from melbo.discovery.fit import fit as fit
    from melbo.discovery.fit import fit_seeds as fit_seeds
    from melbo.errors import MelboError as MelboError
    from melbo.evaluation.compare import compare as compare
    from melbo.evaluation.comparison import Comparison as Comparison
    from melbo.evaluation.halving import Selection as Selection
    from melbo.evaluation.halving import select as select
    from melbo.evaluation.rank import rank as rank
    from melbo.evaluation.ranking import Ranking as Ranking
    from melbo.evaluation.themes import Themes as Themes
    from melbo.evaluation.themes import themes as themes
    from melbo.evaluation.watch import Watch as Watch
    from melbo.evaluation.watch import watch as watch
    from melbo.features.ablate import ablate as ablate
    from melbo.features.adapters import AdapterSet as AdapterSet
    from melbo.features.directions import FeatureSet as FeatureSet
    from melbo.features.generate import Completions as Completions
    from melbo.features.generate import generate as generate
    from melbo.features.prompt_pair import AddPrompt as AddPrompt
    from melbo.features.prompt_pair import PromptPair as PromptPair
    from melbo.features.prompt_pair import actadd as actadd
    from melbo.features.sara import Sara as Sara
    from melbo.features.steerable import Steerable as Steerable
    from melbo.features.steerable import steer as steer
    from melbo.maps.adapter import AdapterMap as AdapterMap
    from melbo.maps.calibrate import calibrate as calibrate
    from melbo.maps.calibration import Calibration as Calibration
    from melbo.maps.function import FunctionMap as FunctionMap
    from melbo.maps.residual import CausalMap as CausalMap
    from melbo.methods.ascent import Alike as Alike
    from melbo.methods.ascent import Melbo as Melbo
    from melbo.methods.exponential import CPE as CPE
    from melbo.methods.exponential import Exponential as Exponential
    from melbo.methods.fixed import Given as Given
    from melbo.methods.fixed import Random as Random
    from melbo.methods.hessian import ObjectiveHessian as ObjectiveHessian
    from melbo.methods.iterate import Status as Status
    from melbo.methods.linear import Linear as Linear
    from melbo.methods.linear import ProjectedLinear as ProjectedLinear
    from melbo.methods.quadratic import Quadratic as Quadratic
    from melbo.models.edits import Add as Add
    from melbo.models.edits import Edit as Edit
    from melbo.models.edits import edit as edit
    from melbo.models.language_model import LanguageModel as LanguageModel
    from melbo.models.loading.load import load as load
    from melbo.models.text.prompts import Prompts as Prompts

# module of each name, below the package
_MODULES = {
    "MelboError": "errors",
    "load": "models.loading.load",
    "LanguageModel": "models.language_model",
    "Prompts": "models.text.prompts",
    "Add": "models.edits",
    "Edit": "models.edits",
    "edit": "models.edits",
    "CausalMap": "maps.residual",
    "AdapterMap": "maps.adapter",
    "FunctionMap": "maps.function",
    "Calibration": "maps.calibration",
    "calibrate": "maps.calibrate",
    "Alike": "methods.ascent",
    "Melbo": "methods.ascent",
    "CPE": "methods.exponential",
    "Exponential": "methods.exponential",
    "Given": "methods.fixed",
    "Random": "methods.fixed",
    "ObjectiveHessian": "methods.hessian",
    "Status": "methods.iterate",
    "Linear": "methods.linear",
    "ProjectedLinear": "methods.linear",
    "Quadratic": "methods.quadratic",
    "ablate": "features.ablate",
    "AdapterSet": "features.adapters",
    "FeatureSet": "features.directions",
    "Completions": "features.generate",
    "generate": "features.generate",
    "AddPrompt": "features.prompt_pair",
    "PromptPair": "features.prompt_pair",
    "actadd": "features.prompt_pair",
    "Sara": "features.sara",
    "Steerable": "features.steerable",
    "steer": "features.steerable",
    "caa": "discovery.contrastive",
    "Fit": "discovery.fit",
    "fit": "discovery.fit",
    "fit_seeds": "discovery.fit",
    "compare": "evaluation.compare",
    "Comparison": "evaluation.comparison",
    "Selection": "evaluation.halving",
    "select": "evaluation.halving",
    "Ranking": "evaluation.ranking",
    "rank": "evaluation.rank",
    "Themes": "evaluation.themes",
    "themes": "evaluation.themes",
    "Watch": "evaluation.watch",
    "watch": "evaluation.watch",
    "Audit": "audit.audit",
    "Parts": "audit.parts",
}
__all__ = sorted(_MODULES)


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from melbo.records import own_version

        return own_version()
    if name not in _MODULES:
        raise AttributeError(f"module 'melbo' has no attribute {name!r}")
    value = getattr(import_module(f"melbo.{_MODULES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
