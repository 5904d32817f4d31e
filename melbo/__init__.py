"""Find hidden behaviours of language models without labels."""

from .calibrate import Calibration, calibrate
from .causal_map import CausalMap
from .errors import MelboError
from .features import FeatureSet
from .fit import Fit, fit
from .generate import Completions, generate
from .iterate import Status
from .load import load
from .methods import Exponential, Linear, ProjectedLinear, Quadratic, Random
from .model import LanguageModel
from .oracles import FunctionMap
from .prompts import Prompts
from .rank import Ranking, rank
from .steer import Add, edit, steer

__version__ = "0.1.0"
__all__ = [
    "Add",
    "Calibration",
    "CausalMap",
    "Completions",
    "Exponential",
    "FeatureSet",
    "Fit",
    "FunctionMap",
    "LanguageModel",
    "Linear",
    "MelboError",
    "ProjectedLinear",
    "Prompts",
    "Quadratic",
    "Random",
    "Ranking",
    "Status",
    "calibrate",
    "edit",
    "fit",
    "generate",
    "load",
    "rank",
    "steer",
]
