"""A PEFT folder of plain LoRA as the registry takes it: from PEFT itself, or from matrices."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from artifacts.adapter import CONFIG_FILE, WEIGHTS_FILE
from artifacts.base import Base
from artifacts.safe_write import write_json


def write_adapter(
    folder: Path,
    base: Base,
    pairs: Mapping[str, tuple[Tensor, Tensor]],
    alphas: Mapping[str, float],
) -> None:
    """Writes A [rank, in] and B [out, rank] per module path; each scales by its alpha / rank."""
    from peft import LoraConfig
    from safetensors.torch import save_file

    ranks = {module: int(a.shape[0]) for module, (a, _) in pairs.items()}
    largest = max(ranks, key=lambda module: ranks[module])
    rank, alpha = ranks[largest], alphas[largest]
    LoraConfig(
        task_type="CAUSAL_LM",
        r=rank,
        lora_alpha=alpha,
        target_modules=sorted(pairs),
        rank_pattern={m: r for m, r in ranks.items() if r != rank},
        alpha_pattern={m: a for m, a in alphas.items() if a != alpha},
        inference_mode=True,
    ).save_pretrained(str(folder))
    tensors = {}
    for module, (a, b) in pairs.items():
        for side, matrix in (("A", a), ("B", b)):
            name = f"base_model.model.{module}.lora_{side}.weight"
            tensors[name] = matrix.detach().cpu().contiguous()
    save_file(tensors, folder / WEIGHTS_FILE, metadata={"format": "pt"})
    tidy_adapter(folder, base)


def tidy_adapter(folder: Path, base: Base) -> None:
    """Names the base by id, not by a path of this machine; sorts what PEFT keeps in sets.

    So equal adapters are equal byte for byte.
    """
    (folder / "README.md").unlink(missing_ok=True)  # the registry writes the card
    path = folder / CONFIG_FILE
    settings = json.loads(path.read_text(encoding="utf-8"))
    settings["base_model_name_or_path"] = base.id
    settings["target_modules"] = sorted(settings["target_modules"])
    write_json(path, settings)
