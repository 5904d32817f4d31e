"""The command that opens runs and audits in a browser."""

from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import click

from melbo.cli.options import load_for, loading_options
from melbo.cli.terminal import Command
from melbo.errors import MelboError
from melbo.explorer.opened import open_folders
from melbo.explorer.steered import Models
from melbo.models.language_model import LanguageModel


@click.command(cls=Command)
@click.argument("runs", metavar="RUN...", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--model", help="Path or hub id of the runs' model, if it has moved.")
@loading_options
@click.option(
    "--host",
    default="127.0.0.1",
    help="Address to listen at; one that others reach asks for the token in the printed address.",
)
@click.option("--port", type=click.IntRange(1, 65535), default=8765, help="Port to listen at.")
def explore(runs: Sequence[Path], model: str | None, host: str, port: int, **options: Any) -> None:
    """Open runs and audits in a browser: read, search, steer, label.

    RUN is a folder of a run or of an audit. Labels, stars and notes are kept in it. The model is
    loaded when it is first talked to; without it, everything can be read.
    """
    _require_toolkit()
    # imported here, as it is not always installed
    from melbo.explorer.web.serve import serve

    def load(run: Path) -> LanguageModel:
        return load_for(run, model, dict(options))

    opened = open_folders(runs)
    for path in (path for labels in opened.labels for path in labels.set_aside):
        click.echo(f"labels that could not be used were set aside as {path}", err=True)
    serve(opened, Models(load), host, port, lambda address: click.echo(f"open {address}"))


def _require_toolkit() -> None:
    """Refuse an installation without the toolkit that draws the pages.

    Raises:
        MelboError: It is missing.
    """
    if find_spec("nicegui") is None:
        raise MelboError("explore needs NiceGUI: pip install 'melbo[explore]'")
