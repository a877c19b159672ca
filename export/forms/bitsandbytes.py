"""bitsandbytes' 4-bit nf4 and 8-bit int8: folders that plain ``from_pretrained`` loads again.

int8, and nf4 that is not calibrated, are bit for bit what bitsandbytes makes of the merged model,
but one weight at a time, where transformers would have the whole model in memory. Only the
decoder's linear layers are quantised, as in training and serving; embedding, lm_head, norms and
biases stay 16-bit.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

import bitsandbytes  # noqa: F401 - the form is refused without it, see `export.forms.catalogue`
import torch
from torch import Tensor

from artifacts.architecture import linear_shapes
from artifacts.base import CONFIG_FILE, Checkpoint
from artifacts.safe_write import write_json
from export.block_format import Quantized
from export.calibration.calibrate import calibrate, check_calibration
from export.forms.form import Options, Workshop
from export.forms.nf4_format import Nf4Blocks, nf4_tensors
from export.forms.shards import write_shards
from export.quantized_base import quantize_int8, quantize_nf4
from export.source import MergedTensors, Source

_WIDE = ["lm_head"]


class BitsAndBytes:
    """An ``export.forms.form.Form``."""

    def __init__(self, kind: Literal["nf4", "int8"]) -> None:
        self._kind = kind
        own = {"calibrate"} if kind == "nf4" else set()
        self.options = frozenset({"shard_bytes", *own})

    def check(self, source: Source, options: Options) -> None:
        if self._is_calibrated(options):
            check_calibration(source)

    def _is_calibrated(self, options: Options) -> bool:
        return self._kind == "nf4" and options.calibrate

    def num_bytes(self, source: Source, options: Options) -> int:
        linears = {f"{module}.weight" for module in linear_shapes(source.base.config)}
        bytes_per_weight = 1.01 if self._kind == "int8" else 0.53
        found = 0.0
        for name, tensor in Checkpoint(source.base).items():
            found += tensor.numel() * (bytes_per_weight if name in linears else 2)
        return int(found)

    def write(self, workshop: Workshop, options: Options, folder: Path) -> dict[str, Any]:
        source = workshop.source
        dtype = wide_dtype(source)
        is_calibrated = self._is_calibrated(options)
        given = _calibrate(workshop) if is_calibrated else {}
        tensors = self._tensors(workshop, dtype, given)
        num_files = write_shards(folder, tensors, options.shard_bytes)
        _write_config(source, folder, dtype, self._quantization(dtype))
        settings: dict[str, Any] = {
            "num_files": num_files,
            "embedding": str(dtype).removeprefix("torch."),
            "lm_head": str(dtype).removeprefix("torch."),
        }
        if self._kind == "nf4":
            nf4 = {"block_size": Nf4Blocks.size, "double_quantization": True}
            return settings | nf4 | {"is_calibrated": is_calibrated}
        return settings | {"outlier_threshold": 6.0}

    def _tensors(
        self, workshop: Workshop, dtype: torch.dtype, given: Mapping[str, Quantized]
    ) -> Iterator[dict[str, Tensor]]:
        merged = MergedTensors(workshop.source)
        linears = {f"{module}.weight" for module in linear_shapes(workshop.source.base.config)}
        for number, name in enumerate(merged):
            workshop.progress(number, len(merged), f"quantising to {self._kind}")
            weight = merged.stored(name).to(dtype)
            if name not in linears:
                yield {name: weight}
            elif name in given:
                yield _named(name, *nf4_tensors(given[name], weight.shape, dtype))
            elif self._kind == "nf4":
                yield _nf4(name, weight)
            else:
                yield _int8(name, weight)

    def _quantization(self, dtype: torch.dtype) -> dict[str, Any]:
        from transformers import BitsAndBytesConfig

        if self._kind == "int8":
            config = BitsAndBytesConfig(load_in_8bit=True, llm_int8_skip_modules=_WIDE)
        else:
            config = BitsAndBytesConfig(
                load_in_4bit=True,
                bnb_4bit_quant_type="nf4",
                bnb_4bit_compute_dtype=dtype,
                bnb_4bit_use_double_quant=True,
                llm_int8_skip_modules=_WIDE,
            )
        found: dict[str, Any] = config.to_dict()
        return found


def wide_dtype(source: Source) -> torch.dtype:
    """Of all that is not quantised, and of the products: the base's own where that is 16-bit."""
    own = source.base.config.dtype
    return own if own in (torch.float16, torch.bfloat16) else torch.bfloat16


def _calibrate(workshop: Workshop) -> dict[str, Quantized]:
    """All but weights whose rows do not fill their blocks, which are rounded by themselves."""
    blocks, shapes = Nf4Blocks(), linear_shapes(workshop.source.base.config)
    ours = {f"{module}.weight" for module, (_, width) in shapes.items() if not width % blocks.size}
    form_of = {name: blocks for name in ours}.get
    return calibrate(workshop.source, form_of, workshop.progress)


def _nf4(name: str, weight: Tensor) -> dict[str, Tensor]:
    packed, state = quantize_nf4(weight, is_double=True)
    return _named(name, packed, state.as_dict(packed=True))


def _named(name: str, packed: Tensor, parts: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: packed, **{f"{name}.{key}": tensor for key, tensor in parts.items()}}


def _int8(name: str, weight: Tensor) -> dict[str, Tensor]:
    module = name.removesuffix("weight")
    rows, scales = quantize_int8(weight)
    by_rows = torch.tensor(0, dtype=torch.uint8)
    return {name: rows, f"{module}SCB": scales, f"{module}weight_format": by_rows}


def _write_config(
    source: Source, folder: Path, dtype: torch.dtype, quantization: dict[str, Any]
) -> None:
    config = json.loads((source.base.path / CONFIG_FILE).read_bytes())
    config.pop("torch_dtype", None)  # its name of old
    config["dtype"] = str(dtype).removeprefix("torch.")
    config["quantization_config"] = quantization
    write_json(folder / CONFIG_FILE, config)


NF4 = BitsAndBytes("nf4")
INT8 = BitsAndBytes("int8")
