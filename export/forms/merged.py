"""A base with an adapter merged into it, W + s·B·A: a folder that any transformers program loads.

Sums are taken in float32 and rounded once, to the base's own number format.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from torch import Tensor

from artifacts.base import Checkpoint
from export.forms.form import Options, Workshop
from export.forms.shards import write_shards
from export.source import MergedTensors, Source


class Merged:
    """An ``export.forms.form.Form``."""

    options = frozenset({"shard_bytes"})

    def check(self, source: Source, options: Options) -> None:
        pass  # what opens as a base can be merged into

    def num_bytes(self, source: Source, options: Options) -> int:
        return sum(tensor.nbytes for tensor in Checkpoint(source.base).values())

    def write(self, workshop: Workshop, options: Options, folder: Path) -> dict[str, Any]:
        num_files = write_shards(folder, _tensors(workshop), options.shard_bytes)
        return {"num_files": num_files}


def _tensors(workshop: Workshop) -> Iterator[dict[str, Tensor]]:
    merged = MergedTensors(workshop.source)
    for number, name in enumerate(merged):
        workshop.progress(number, len(merged), "merging")
        yield {name: merged.stored(name)}


MERGED = Merged()
