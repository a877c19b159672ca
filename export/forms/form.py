"""What a form is to the rest of export, and what the forms of one command share."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from artifacts.errors import InvalidInput
from export.source import Source

if TYPE_CHECKING:
    import onnx_ir as ir
    import torch

# Work done and in all, in any unit, and what is being done now.
Progress = Callable[[int, int, str], None]


BLOCK_SIZES = (16, 32, 64, 128, 256)


@dataclass(frozen=True, slots=True)
class Options:
    """What a user may choose of the forms."""

    shard_bytes: int = 5 * 10**9
    block_size: int = 64  # onnx-int4, onnx-int8: weights that share a scale
    keep_head: bool = False  # onnx-int4, onnx-int8: embedding and lm_head stay wider
    # onnx-int4, nf4, gguf-q4_0: round by what the model computes, not weight by weight
    calibrate: bool = True
    pt2: bool = True  # torchscript: torch.export's program beside it, with the weights again


def options_of(given: Mapping[str, Any]) -> Options:
    """Raises InvalidInput for a value that makes no sense."""
    options = Options(**given)
    if not options.shard_bytes > 0:
        raise InvalidInput(
            f"shard_gb={options.shard_bytes / 1e9:g} must be above 0", param="shard_gb"
        )
    if options.block_size not in BLOCK_SIZES:
        raise InvalidInput(
            f"block_size={options.block_size} is none of {', '.join(map(str, BLOCK_SIZES))}",
            param="block_size",
        )
    return options


class Workshop:
    """Expensive things that several forms of one command want; each is made once."""

    def __init__(self, source: Source, progress: Progress) -> None:
        self.source = source
        self.progress = progress
        self._skeletons: dict[torch.dtype, ir.Model] = {}

    def skeleton(self, dtype: torch.dtype) -> ir.Model:
        """An ONNX graph without weights, for the caller to fill and change; traced once."""
        if dtype not in self._skeletons:
            from export.graph.skeleton import skeleton

            self.progress(0, 1, "tracing")
            self._skeletons[dtype] = skeleton(self.source.base.config, dtype)
        return self._skeletons[dtype].clone()


class Form(Protocol):
    """One export format. ``options``: the fields of `Options` that change what it writes."""

    @property
    def options(self) -> frozenset[str]: ...

    def check(self, source: Source, options: Options) -> None:
        """Raises InvalidInput for a combination that cannot be exported, before work starts."""
        ...

    def num_bytes(self, source: Source, options: Options) -> int:
        """About what the finished folder takes, to see whether it fits on the disk."""
        ...

    def write(self, workshop: Workshop, options: Options, folder: Path) -> dict[str, Any]:
        """Writes the model's own files; returns what was chosen, as settings for the record.

        The folder holds the base's configuration, tokenizer and licence already (nothing for the
        form ``adapter``); record, proof and card are added by the caller. Whatever is raised leaves
        the folder to the caller, who removes it.
        """
        ...
