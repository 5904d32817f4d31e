"""Find hidden behaviours of language models without labels."""

from .ablate import ablate
from .bank import Bank
from .calibrate import Calibration, calibrate
from .causal_map import CausalMap
from .contrast import AddPrompt, PromptPair, actadd, caa
from .edit import Add, Edit, edit
from .errors import MelboError
from .features import FeatureSet
from .fit import Fit, fit
from .generate import Completions, generate
from .iterate import Status
from .load import load
from .methods import Alike, Exponential, Given, Linear, Melbo, ObjectiveHessian, ProjectedLinear, Quadratic, Random
from .model import LanguageModel
from .oracles import FunctionMap
from .prompts import Prompts
from .rank import Ranking, rank
from .sara import Sara
from .steer import steer

__version__ = "0.1.0"
__all__ = [
    "Add",
    "AddPrompt",
    "Alike",
    "Bank",
    "Calibration",
    "CausalMap",
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
    "Status",
    "ablate",
    "actadd",
    "caa",
    "calibrate",
    "edit",
    "fit",
    "generate",
    "load",
    "rank",
    "steer",
]
