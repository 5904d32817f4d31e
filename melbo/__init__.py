"""Find hidden behaviours of language models without labels."""

from .ablate import ablate
from .adapter_map import AdapterMap
from .adapters import AdapterSet
from .bank import Bank
from .calibrate import Calibration, calibrate
from .causal_map import CausalMap
from .compare import Comparison, compare
from .contrast import AddPrompt, PromptPair, actadd, caa
from .edit import Add, Edit, edit
from .errors import MelboError
from .features import FeatureSet
from .fit import Fit, fit, fit_seeds
from .generate import Completions, generate
from .iterate import Status
from .load import load
from .methods import CPE, Alike, Exponential, Given, Linear, Melbo, ObjectiveHessian, ProjectedLinear, Quadratic, Random
from .model import LanguageModel
from .oracles import FunctionMap
from .prompts import Prompts
from .rank import Ranking, rank
from .sara import Sara
from .select import Selection, select
from .steer import steer
from .theme import Themes, themes
from .watch import Watch, watch

__version__ = "0.1.0"
__all__ = [
    "CPE",
    "AdapterMap",
    "AdapterSet",
    "Add",
    "AddPrompt",
    "Alike",
    "Bank",
    "Calibration",
    "CausalMap",
    "Comparison",
    "Completions",
    "Edit",
    "Exponential",
    "FeatureSet",
    "Fit",
    "FunctionMap",
    "Given",
    "LanguageModel",
    "Linear",
    "Melbo",
    "MelboError",
    "ObjectiveHessian",
    "ProjectedLinear",
    "PromptPair",
    "Prompts",
    "Quadratic",
    "Random",
    "Ranking",
    "Sara",
    "Selection",
    "Status",
    "Themes",
    "Watch",
    "ablate",
    "actadd",
    "caa",
    "calibrate",
    "compare",
    "edit",
    "fit",
    "fit_seeds",
    "generate",
    "load",
    "rank",
    "select",
    "steer",
    "themes",
    "watch",
]
