import pytest
import torch
from cases import tiny_model

from melbo import Prompts


@pytest.fixture(scope="module")
def lm():
    return tiny_model("llama", torch.float32)


@pytest.fixture(scope="module")
def asked(lm):
    return Prompts.chat(lm, ["red dog", "How do I learn to play the guitar ?", "yes"])
