"""A traced module with its KV cache outside (``model.ts``), and torch.export's program beside it.

``model.ts`` is what the proof and the server run; ``model.pt2`` is its successor in torch, checked
here against the same logits. Neither needs transformers to be loaded. Each holds all weights: two
archives cannot share them, so ``pt2`` off halves the folder.

Not offered: AOTInductor. On two cores it compiles a 0.5B model for two minutes, wants a C++
compiler, binds the file to this CPU's instructions, and is no faster where memory decides. Who
wants it gives the loaded ``model.pt2`` to ``torch._inductor.aoti_compile_and_package``.
"""

from __future__ import annotations

import logging
import math
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from artifacts.architecture import head_dim, tensor_shapes
from artifacts.errors import InvalidInput
from artifacts.exported.graph import GraphShape
from artifacts.exported.slab import ATTENTION, SlabDecoder
from artifacts.exported.torchscript_model import MODEL_FILE, SHAPE_ENTRY, shape_text
from export.forms.form import Options, Workshop
from export.source import Source, merged_model

PROGRAM_FILE = "model.pt2"
MAX_DIFFERENCE = 1e-4  # of logits; as the proof allows a float32 form
# num_rows, length, capacity, logits wanted: the first is traced, the others show it is general.
_SIZES = ((2, 3, 8, 2), (1, 1, 5, 1), (3, 6, 20, 3), (4, 1, 33, 1))


@dataclass(frozen=True, slots=True)
class _Probe:
    """What transformers answers to some inputs, to ask a written file the same."""

    sizes: tuple[int, int, int, int]
    logits: Tensor
    cache: list[Tensor]  # as it was left


class TorchScript:
    """``torchscript``: float32."""

    options = frozenset({"pt2"})

    def check(self, source: Source, options: Options) -> None:
        pass  # every family that is served can be traced

    def num_bytes(self, source: Source, options: Options) -> int:
        num_parameters = sum(math.prod(s) for s in tensor_shapes(source.base.config).values())
        return 4 * num_parameters * (2 if options.pt2 else 1)

    def write(self, workshop: Workshop, options: Options, folder: Path) -> dict[str, Any]:
        shape, progress = _shape(workshop.source.base.config), workshop.progress
        progress(0, 4, "merging")
        decoder = SlabDecoder(merged_model(workshop.source, attention=ATTENTION), in_place=True)
        decoder.eval()
        probes = [_probe(decoder, shape, sizes) for sizes in _SIZES]
        progress(1, 4, "tracing")
        with _quiet(), torch.no_grad():
            _write_traced(decoder, shape, folder / MODEL_FILE)
            if options.pt2:
                progress(2, 4, "torch.export")
                _write_program(decoder, shape, folder / PROGRAM_FILE)
            del decoder  # what is on disk is loaded again, and there may be room for one only
            progress(3, 4, "checking the files")
            _compare(torch.jit.load(folder / MODEL_FILE), shape, probes, MODEL_FILE)
            if options.pt2:
                program = torch.export.load(folder / PROGRAM_FILE).module()
                _compare(program, shape, probes, PROGRAM_FILE)
        progress(4, 4, "checking the files")
        files = (MODEL_FILE, PROGRAM_FILE) if options.pt2 else (MODEL_FILE,)
        return {"weights_in": {name: (folder / name).stat().st_size for name in files}}


TORCHSCRIPT = TorchScript()


def _write_traced(decoder: SlabDecoder, shape: GraphShape, path: Path) -> None:
    # torch's own check traces again at the same sizes; `_compare` asks for other ones.
    traced = torch.jit.trace(decoder, _inputs(shape, _SIZES[0]), check_trace=False)
    torch.jit.save(traced, path, _extra_files={SHAPE_ENTRY: shape_text(shape)})


def _write_program(decoder: SlabDecoder, shape: GraphShape, path: Path) -> None:
    """The cache is written in place here as well: the program names it as mutated inputs."""
    dim = torch.export.Dim
    rows, length, capacity = dim("batch"), dim("length"), dim("capacity")
    tokens = {0: rows, 1: length}
    cache = [{0: rows, 2: capacity} for _ in shape.cache_names]
    sizes = (tokens, tokens, {0: rows}, {0: rows, 1: capacity}, {0: rows, 1: dim("logits")}, cache)
    program = torch.export.export(
        decoder,
        _inputs(shape, _SIZES[0]),
        dynamic_shapes=sizes,
        # What it must know about strides holds for all sizes, but it can only see so when it runs.
        prefer_deferred_runtime_asserts_over_guards=True,
    )
    torch.export.save(program, path)


def _shape(config: Any) -> GraphShape:
    return GraphShape(
        num_layers=config.num_hidden_layers,
        num_kv_heads=config.num_key_value_heads,
        head_dim=head_dim(config),
        vocab_size=config.vocab_size,
        cache_dtype=torch.float32,
    )


def _inputs(shape: GraphShape, sizes: tuple[int, int, int, int]) -> tuple[Any, ...]:
    """The same for the same sizes. Ragged, padded, a cache in use: nothing looks constant."""
    num_rows, length, capacity, num_wanted = sizes
    generator = torch.Generator().manual_seed(length)
    ids = torch.randint(shape.vocab_size, (num_rows, length), generator=generator)
    start = torch.arange(num_rows) % (capacity - length + 1)
    positions = start[:, None] + torch.arange(length)
    mask = (torch.rand(num_rows, capacity, generator=generator) < 0.7).long()
    wanted = torch.randint(length, (num_rows, num_wanted), generator=generator)
    cache = [tensor.normal_(generator=generator) for tensor in shape.new_cache(num_rows, capacity)]
    return ids, positions, start, mask, wanted, cache


@torch.no_grad()
def _probe(decoder: SlabDecoder, shape: GraphShape, sizes: tuple[int, int, int, int]) -> _Probe:
    inputs = _inputs(shape, sizes)
    return _Probe(sizes, decoder(*inputs), inputs[-1])


def _compare(
    loaded: Callable[..., Tensor], shape: GraphShape, probes: Sequence[_Probe], name: str
) -> None:
    """Raises InvalidInput where the file answers otherwise than transformers at any size."""
    for probe in probes:
        inputs = _inputs(shape, probe.sizes)
        found = [loaded(*inputs), *inputs[-1]]
        wanted = [probe.logits, *probe.cache]
        worst = max(float((f - w).abs().max()) for f, w in zip(found, wanted, strict=True))
        if not worst <= MAX_DIFFERENCE:
            raise InvalidInput(
                f"{name} differs from transformers by {worst:.1e} at rows, length, capacity and "
                f"logits {probe.sizes}: this version of torch or transformers traces wrongly; "
                "choose another format",
                param="format",
            )


@contextmanager
def _quiet() -> Iterator[None]:
    """torch warns of its own successor and of branches, which `_compare` shows to be constant."""
    logger = logging.getLogger("torch.export")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
