"""Exports that transformers itself loads: merged, bitsandbytes' nf4 and int8, GGUF.

Where a GPU is there, the model and its cache lie on it.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from artifacts.adapter import LoraWeights
from artifacts.errors import Corrupt, InvalidInput
from artifacts.exported.graph import AdapterInputs, GraphBatch, GraphShape
from artifacts.exported.slab import ATTENTION, SlabDecoder

GGUF_FILE = "model.gguf"
CONFIG_FILE = "config.json"


class TransformersModel:
    """An ``ExportedModel`` around a transformers causal LM in eval mode."""

    takes_adapters = False

    def __init__(self, model: Any) -> None:
        config = model.config
        heads = config.num_attention_heads
        self.shape = GraphShape(
            num_layers=config.num_hidden_layers,
            num_kv_heads=config.num_key_value_heads,
            head_dim=getattr(config, "head_dim", None) or config.hidden_size // heads,
            vocab_size=config.vocab_size,
            cache_dtype=model.dtype,
            cache_device=str(model.device),
        )
        self._decoder = SlabDecoder(model, in_place=True)

    @torch.no_grad()
    def run(
        self, batch: GraphBatch, cache: Sequence[Tensor], adapter: AdapterInputs | None = None
    ) -> Tensor:
        if adapter is not None:
            raise InvalidInput("this export has its adapter merged in and takes no other")
        device = self.shape.cache_device
        tokens = (batch.input_ids, batch.position_ids, batch.cache_start)
        inputs = [t.to(device) for t in (*tokens, batch.attention_mask, batch.logits_rows)]
        logits: Tensor = self._decoder(*inputs, cache)
        return logits.float().cpu()

    def pack(self, weights: LoraWeights) -> AdapterInputs:
        raise InvalidInput("this export has its adapter merged in and takes no other")


def load_transformers(folder: Path, *, num_threads: int | None = None) -> TransformersModel:
    """Opens what ``from_pretrained(folder)`` or ``gguf_file=`` opens, in the folder's own dtype.

    GGUF is computed in float32. ``num_threads`` holds for the whole process, as torch wants it.
    Raises Corrupt for weights that are broken or not whole, and InvalidInput where bitsandbytes or
    gguf is not installed.
    """
    from transformers import AutoModelForCausalLM

    if num_threads is not None:
        torch.set_num_threads(num_threads)
    options: dict[str, Any] = {"dtype": "auto"}
    if (folder / GGUF_FILE).is_file():
        _need("gguf", folder)
        options = {"dtype": torch.float32, "gguf_file": GGUF_FILE, "config": _gguf_config(folder)}
    elif _is_quantized(folder):
        _need("bitsandbytes", folder)
        # It would say with every product that it casts the input.
        logging.getLogger("bitsandbytes.autograd._functions").setLevel(logging.ERROR)
    device = "cuda:0" if torch.cuda.is_available() else "cpu"
    try:
        model, found = AutoModelForCausalLM.from_pretrained(
            folder,
            attn_implementation=ATTENTION,
            device_map={"": device},
            local_files_only=True,
            output_loading_info=True,
            **options,
        )
    except Exception as error:  # safetensors, transformers and bitsandbytes each have their own
        raise Corrupt(
            f"{folder} cannot be loaded ({type(error).__name__}: {error}); export it again"
        ) from error
    # transformers makes up at random what it does not find.
    if lost := sorted(found["missing_keys"]) or sorted(map(str, found["mismatched_keys"])):
        raise Corrupt(f"{folder} has no usable weight {lost[0]}; export it again")
    _spare_odd_shapes(model)
    return TransformersModel(model.eval())


def _gguf_config(folder: Path) -> Any:
    """The folder's own: of GGUF transformers reads neither rotary scaling nor Qwen3's head_dim.

    Mistral's graph is Llama's there, and so its tensors are stored.
    """
    from transformers import AutoConfig, LlamaConfig

    config = AutoConfig.from_pretrained(folder, local_files_only=True)
    if config.model_type != "mistral":
        return config
    own = ("model_type", "architectures", "sliding_window", "transformers_version")
    return LlamaConfig(**{key: value for key, value in config.to_dict().items() if key not in own})


def _spare_odd_shapes(model: Any) -> None:
    """bitsandbytes' kernel for CPUs with bfloat16 stops at 4-bit layers that it cannot pack."""
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            is_even = module.out_features % 32 == 0 and module.in_features % 64 == 0
            module.support_avx512bf16_for_cpu &= is_even


def _is_quantized(folder: Path) -> bool:
    try:
        return "quantization_config" in json.loads((folder / CONFIG_FILE).read_bytes())
    except (OSError, ValueError) as error:
        raise Corrupt(f"{folder / CONFIG_FILE} is unreadable ({error}); export it again") from error


def _need(library: str, folder: Path) -> None:
    from importlib.util import find_spec

    if find_spec(library) is None:
        raise InvalidInput(
            f"{folder} needs {library}; install it with: pip install {library}", param="model"
        )
