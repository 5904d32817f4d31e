"""``python -m research``: the studies that stand beside the package."""

from melbo.cli import main
from research.commands import cli

if __name__ == "__main__":
    main(cli)
