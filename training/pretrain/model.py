"""The shape of the embedded base, and its export as an ordinary transformers folder."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors.torch import save
from transformers import LlamaConfig, LlamaForCausalLM

from artifacts.safe_write import write_bytes
from training.pretrain.recipe import Shape
from training.pretrain.tokenizer import BOS, END, PAD, SPECIAL_TOKENS

TOKEN_IDS = {token: index for index, token in enumerate(SPECIAL_TOKENS)}


def build_model(shape: Shape, seed: int) -> LlamaForCausalLM:
    """A freshly initialised model in float32; the same weights for the same seed."""
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=shape.vocab_size,
        hidden_size=shape.hidden_size,
        intermediate_size=shape.intermediate_size,
        num_hidden_layers=shape.num_layers,
        num_attention_heads=shape.num_heads,
        num_key_value_heads=shape.num_kv_heads,
        head_dim=shape.head_dim,
        max_position_embeddings=shape.context,
        tie_word_embeddings=True,
        bos_token_id=TOKEN_IDS[BOS],
        eos_token_id=TOKEN_IDS[END],
        pad_token_id=TOKEN_IDS[PAD],
    )
    # Plain attention: at these short lengths its backward takes a fraction of the fused CPU one's.
    return LlamaForCausalLM._from_config(config, attn_implementation="eager")


def export_model(model: LlamaForCausalLM, folder: Path) -> None:
    """Write bf16 weights, config.json and generation_config.json, each file whole or not at all.

    The tied output matrix is stored once, as `model.embed_tokens.weight`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    weights = {
        name: tensor.detach().to(torch.bfloat16).contiguous()
        for name, tensor in model.state_dict().items()
        if name != "lm_head.weight"
    }
    config = model.config.to_dict()
    config.update(architectures=["LlamaForCausalLM"], dtype="bfloat16")
    config.pop("_name_or_path", None)
    generation = {
        "bos_token_id": config["bos_token_id"],
        "eos_token_id": config["eos_token_id"],
        "pad_token_id": config["pad_token_id"],
        "do_sample": False,
    }
    write_bytes(folder / "model.safetensors", save(weights, metadata={"format": "pt"}))
    for name, content in (("config.json", config), ("generation_config.json", generation)):
        write_bytes(folder / name, (json.dumps(content, indent=2) + "\n").encode())
