"""``python -m export.gguf OUT.gguf --model BASE``: a base alone, to put adapters on. In F16."""

from __future__ import annotations

import secrets
from pathlib import Path
from typing import Annotated

import typer

from artifacts.adapter import LoraWeights
from artifacts.base import Base, open_base
from artifacts.errors import InvalidInput
from artifacts.storage import storage_errors
from export.cli import one_line_errors, progress_bar
from export.forms.form import Options, Progress
from export.forms.gguf import F16
from export.source import Source

_NOTHING = LoraWeights({}, 0, 0, (), "", 0, {})


def write_base(base: Base, path: Path, progress: Progress) -> None:
    """Replaces what is at ``path`` once the file is whole. Raises InvalidInput, StorageError."""
    where = str(base.path)
    source = Source(base, where, base.id, where, base.path, _NOTHING, None, "original")
    F16.check(source, Options())
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.part")
    try:
        with storage_errors(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            F16.write_model(source, temporary, progress, {})
            temporary.replace(path)
    except OSError as error:  # not the disk's fault: a folder is there, or a file where one must be
        raise InvalidInput(
            f"{path} cannot be written ({error.strerror}); name another file", param="output"
        ) from error
    finally:
        if temporary.parent.is_dir():
            temporary.unlink(missing_ok=True)


def main(
    output: Annotated[Path, typer.Argument(help="The file to write.")],
    model: Annotated[str | None, typer.Option(help="The base; the embedded one without.")] = None,
) -> None:
    """Write a base as a GGUF file, for llama.cpp with an exported adapter.gguf on it."""
    with one_line_errors(), progress_bar() as progress:
        write_base(open_base(model), output, progress)


if __name__ == "__main__":
    typer.run(main)
