"""The base with a fresh LoRA on it, and that LoRA as a portable PEFT folder. Knows no data."""

from __future__ import annotations

import difflib
import json
from pathlib import Path
from typing import Any

from artifacts.architecture import linear_shapes
from artifacts.base import Base, load_transformers_model
from artifacts.safe_write import write_json
from training.config import TrainingConfig
from training.errors import InvalidConfig


def choose_targets(config: TrainingConfig, base: Base) -> list[str]:
    """Names of linear layers, sorted; each listed one must exist in the base.

    Raises InvalidConfig naming the available modules: PEFT would skip a name that matches nothing.
    """
    paths = linear_shapes(base.config)
    available = sorted({path.rsplit(".", 1)[-1] for path in paths})
    if config.target_modules == "all-linear":
        return available
    for name in config.target_modules:
        if not any(path == name or path.endswith(f".{name}") for path in paths):
            near = difflib.get_close_matches(name, available, n=1)
            hint = f"did you mean {near[0]!r}? " if near else ""
            raise InvalidConfig(
                f"target module {name!r} matches nothing in {base.id}; {hint}available: "
                f"{', '.join(available)}",
                param="target_modules",
            )
    return sorted(config.target_modules)


def attach_adapter(config: TrainingConfig, base: Base, dtype: str) -> Any:
    """A PEFT model whose LoRA matrices are float32 and, at the start, change nothing."""
    from peft import LoraConfig, get_peft_model
    from transformers import set_seed

    set_seed(config.seed)  # the initial A matrices
    lora = LoraConfig(
        task_type="CAUSAL_LM",
        r=config.rank,
        lora_alpha=config.scaled_alpha,
        lora_dropout=config.dropout,
        target_modules=choose_targets(config, base),
        use_rslora=config.use_rslora,
    )
    model = load_transformers_model(base, dtype)
    if config.gradient_checkpointing:
        model.enable_input_require_grads()  # else no gradient reaches the first checkpointed layer
    return get_peft_model(model, lora)


def save_adapter(model: Any, base: Base, folder: Path) -> None:
    """Writes a PEFT folder that names the base by id, not by a path of this machine.

    Keys and lists are sorted, so that equal adapters are equal byte for byte.
    """
    model.save_pretrained(str(folder), save_embedding_layers=False)
    (folder / "README.md").unlink(missing_ok=True)  # the registry writes the card
    path = folder / "adapter_config.json"
    settings = json.loads(path.read_text(encoding="utf-8"))
    settings["base_model_name_or_path"] = base.id
    settings["target_modules"] = sorted(settings["target_modules"])
    write_json(path, settings)
