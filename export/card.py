"""The card of an export: what it is, how it is loaded, and what its proof found."""

from __future__ import annotations

from typing import Any

import yaml

from artifacts.exported.formats import FORMATS
from artifacts.exported.record import ExportRecord
from artifacts.manifest import CARD_MARK
from artifacts.model_card import table
from export.proof.report import Proof, proof_section

_START = "<!-- proof of the export -->"
_LIBRARY = {"onnx": "onnxruntime", "torchscript": "pytorch", "none": "gguf"}

# How each runtime loads it, as Markdown.
_USE = {
    "engine": "`AutoModelForCausalLM.from_pretrained(folder)`, or `loraloop serve --model FOLDER`.",
    "transformers": (
        "`AutoModelForCausalLM.from_pretrained(folder)` with bitsandbytes installed, or "
        "`loraloop serve --model FOLDER`."
    ),
    "onnx": (
        "`loraloop serve --model FOLDER`, or any ONNX Runtime with `model.onnx`. Inputs: "
        "`input_ids`, `position_ids` [rows, length]; `cache_start` [rows], the place of each row's "
        "first token in its cache; `attention_mask` [rows, capacity], 1 for places that may be "
        "seen, those of this call included; `logits_rows` [rows, wanted], tokens of this call "
        "whose logits are wanted; `past_key_values.N.key|value` [rows, KV heads, capacity, head "
        "size]. "
        "Bind `present.N.key|value` to the same memory as the past: then nothing is copied."
    ),
    "torchscript": (
        "`loraloop serve --model FOLDER`, or `torch.jit.load('model.ts')` in Python and C++ "
        "without transformers: `forward(input_ids, position_ids, cache_start, attention_mask, "
        "logits_rows, past)`, where `past` is a list of zeros [rows, KV heads, capacity, head "
        "size], key and value of each layer, which is written in place."
    ),
    "none": "`ollama create NAME -f Modelfile`, or llama.cpp with `-m model.gguf`.",
}


def export_card(record: ExportRecord, proof: Proof | None, own: str | None) -> str:
    """Markdown; ``own`` is a card that the form brought or an earlier proof left, kept on top."""
    section = f"{_START}\n\n## Proof\n\n{_proof(proof)}\n"
    if own is not None:
        return f"{own.split(_START)[0].rstrip()}\n\n{section}"
    form = FORMATS[record.format]
    front: dict[str, Any] = {
        "library_name": _LIBRARY.get(form.runtime, "transformers"),
        "base_model": record.base_id,
        "pipeline_tag": "text-generation",
        "tags": ["loraloop", record.format],
    }
    identity = {
        "form": f"{record.format}: {form.summary}",
        "adapter": f"{record.adapter_id}, content hash `{record.adapter_hash}`",
        "base": f"{record.base_id}, fingerprint `{record.base_fingerprint}`",
        "merged into": _MERGE[record.merge],
        **{f"{key}": f"`{value}`" for key, value in {**record.options, **record.settings}.items()},
        "made by": ", ".join(f"{name} {number}" for name, number in record.versions.items()),
        "made at": record.created_at,
    }
    parts = [
        f"---\n{yaml.safe_dump(front, allow_unicode=True, sort_keys=False)}---",
        CARD_MARK,
        f"# {record.adapter_id} on {record.base_id}, {record.format}",
        "## Use",
        _USE[form.runtime],
        "## Identity",
        table([["", ""], *([key, value] for key, value in identity.items())]),
    ]
    return "\n\n".join(parts) + f"\n\n{section}"


_MERGE = {
    "none": "nothing: the adapter stays beside its base",
    "original": "the base as it is",
    "dequantized": "the quantised base that the adapter was trained on, dequantised",
}


def _proof(proof: Proof | None) -> str:
    return "This export was not verified." if proof is None else proof_section(proof)
