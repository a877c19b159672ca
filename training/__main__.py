"""``python -m training CONFIG.yaml [key=value …] [--progress json|bar]``."""

import typer

from training.cli import train

if __name__ == "__main__":
    typer.run(train)
