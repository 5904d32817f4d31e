import pytest
from cases import TINY, checkpoint


@pytest.fixture(scope="session")
def folder(tmp_path_factory):
    """A tiny Llama as a checkpoint; tests leave it as it is."""
    return checkpoint(TINY["llama"](), tmp_path_factory.mktemp("models") / "llama")
