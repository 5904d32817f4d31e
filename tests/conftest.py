import pytest
import torch
from cases import TINY
from command_line import home as home  # fixtures
from command_line import melbo as melbo
from command_line import refuses as refuses
from command_line import run as run
from stub_endpoint import server as server

# The models are tiny: a second thread costs more than it brings, and tests then leave room for
# whatever else runs.
torch.set_num_threads(1)


#: Architectures that the fast lane tries, where a test goes through all of them.
FEW = ("falcon_alibi", "gemma2", "gpt2", "llama", "mixtral", "opt")


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items):
    """Mark tests of one architecture among many slow, but for a few architectures."""
    for item in items:
        given = item.callspec.params.values() if hasattr(item, "callspec") else ()
        named = [value for value in given if isinstance(value, str) and value in TINY]
        if named and not set(named) & set(FEW):
            item.add_marker(pytest.mark.slow)
