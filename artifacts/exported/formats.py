"""The forms that an adapter can be exported to. Knows how to make and to load none of them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from artifacts.errors import InvalidInput

# What computes a form on this stack. "engine": it is a base like any other. "none": other programs.
Runtime = Literal["engine", "onnx", "torchscript", "transformers", "none"]


@dataclass(frozen=True, slots=True)
class Format:
    """One form: its name on the command line, what runs it, and what it is in a few words."""

    name: str
    runtime: Runtime
    summary: str
    is_merged: bool = True  # the adapter is in the weights; False: it stays apart

    @property
    def is_servable(self) -> bool:
        return self.runtime != "none"


_ALL = (
    Format("merged", "engine", "safetensors shards in the base's number format"),
    Format("adapter", "none", "the PEFT folder with card and licence", is_merged=False),
    Format("onnx", "onnx", "one float32 graph with KV cache"),
    Format("onnx-fp16", "onnx", "the same graph in float16"),
    Format("onnx-int8", "onnx", "dynamic int8 products"),
    Format("onnx-int4", "onnx", "block-wise int4 products and embedding (MatMulNBits)"),
    Format(
        "onnx-adapters", "onnx", "the base's graph, adapters as inputs beside it", is_merged=False
    ),
    Format("torchscript", "torchscript", "a traced module, and torch.export's .pt2 beside it"),
    Format("nf4", "transformers", "bitsandbytes 4-bit"),
    Format("int8", "transformers", "bitsandbytes 8-bit"),
    Format("gguf", "none", "llama.cpp in F16, the adapter as GGUF LoRA, an Ollama Modelfile"),
    Format("gguf-q8_0", "none", "the same in Q8_0"),
    Format("gguf-q4_0", "none", "the same in Q4_0"),
)
FORMATS = {form.name: form for form in _ALL}


def format_named(name: str) -> Format:
    """Raises InvalidInput for a name that is none."""
    try:
        return FORMATS[name]
    except KeyError:
        raise InvalidInput(
            f"format {name!r} is unknown; choose of {', '.join(FORMATS)}", param="format"
        ) from None
