"""QLoRA (arXiv:2305.14314): the frozen base in 4 or 8 bits, by bitsandbytes, as the server has it.

Only the decoder's linear layers are quantised, in the server's block sizes; embeddings and lm_head
stay as they are. Such an adapter serves on the 16-bit base too; its manifest says what it was
trained on.
"""

from __future__ import annotations

from typing import Any

import torch

from artifacts.base import Base
from training.config import TrainingConfig


def load_quantized(base: Base, config: TrainingConfig, dtype: str) -> Any:
    """transformers' model in eval mode, products in ``dtype``."""
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig

    if config.quantization == "nf4":
        settings = BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_compute_dtype=getattr(torch, dtype),
            bnb_4bit_use_double_quant=config.double_quantization,
        )
    else:
        settings = BitsAndBytesConfig(load_in_8bit=True)
    model = AutoModelForCausalLM.from_pretrained(
        base.path,
        dtype=dtype,
        quantization_config=settings,
        device_map={"": "cuda:0" if torch.cuda.is_available() else "cpu"},
        local_files_only=True,
    )
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            # Its first evaluation would repack the weight for a CPU kernel that rounds to bfloat16
            # and has no backward pass: training after it would learn nothing through the layer.
            module.support_avx512bf16_for_cpu = False
    return model.eval()


def is_quantized(linear: Any) -> bool:
    return type(linear.weight).__name__ in ("Params4bit", "Int8Params")


@torch.no_grad()
def dense_weight(linear: Any) -> torch.Tensor:
    """The weight [out, in] that a quantised layer computes with.

    Not by PEFT's own function: on a CPU it spoils an 8-bit layer that has already computed.
    """
    weight: Any = linear.weight
    from bitsandbytes import functional

    if type(weight).__name__ == "Params4bit":
        return torch.as_tensor(functional.dequantize_4bit(weight.data, weight.quant_state))
    scales = weight.SCB if linear.state.SCB is None else linear.state.SCB  # moved by the first call
    return torch.as_tensor(functional.int8_vectorwise_dequant(weight.data, scales))
