"""What a PEFT ``adapter_config.json`` means for one module: rank and scaling. No torch.

Whatever we would not honour is refused by name, unknown settings included: an adapter that answers
differently from how PEFT would run it is worse than one that does not load.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from artifacts.errors import AdapterRejected

CONFIG_FILE = "adapter_config.json"

# Settings that say how the adapter was made or where it sits; the tensors' names and shapes already
# tell, or inference does not depend on them.
INERT_KEYS = frozenset(
    {
        "auto_mapping",
        "base_model_name_or_path",
        "ensure_weight_tying",
        "eva_config",
        "exclude_modules",
        "inference_mode",
        "layers_pattern",
        "layers_to_transform",
        "lora_dropout",
        "megatron_core",
        "merge_weights",
        "peft_version",
        "qalora_group_size",
        "revision",
        "runtime_config",
        "target_modules",
        "unsloth_fixed",
        "velora_config",
    }
)
READ_KEYS = frozenset(
    {
        "alpha_pattern",
        "bias",
        "init_lora_weights",
        "lora_alpha",
        "peft_type",
        "r",
        "rank_pattern",
        "task_type",
        "use_rslora",
    }
)
# Initialisations that leave another base behind: the adapter is only right on top of that one.
BASE_CHANGING_INITS = ("pissa", "olora", "corda", "loftq", "lora_ga")
TASK_TYPES = (None, "CAUSAL_LM")
MAX_ALPHA = 1e6  # far beyond any use; keeps scaled float16 products finite


@dataclass(frozen=True)
class LoraSettings:
    """Rank and scaling of every module, PEFT's patterns applied."""

    rank: int
    alpha: float
    use_rslora: bool
    rank_pattern: Mapping[str, int]
    alpha_pattern: Mapping[str, float]

    def rank_of(self, module: str) -> int:
        return self.rank_pattern.get(matching_key(self.rank_pattern, module), self.rank)

    def scaling_of(self, module: str) -> float:
        """alpha / r, or alpha / sqrt(r) for rsLoRA (https://arxiv.org/abs/2312.03732)."""
        alpha = self.alpha_pattern.get(matching_key(self.alpha_pattern, module), self.alpha)
        rank = self.rank_of(module)
        return alpha / (math.sqrt(rank) if self.use_rslora else rank)


def matching_key(patterns: Mapping[str, Any], module: str) -> str:
    """The first pattern that matches the whole module path or a dotted end of it, as in PEFT.

    The same rule as ``peft.utils.other.get_pattern_key``: keys are regular expressions, tried in
    the order of the file.
    """
    return next((key for key in patterns if re.match(_anchored(key), module)), module)


def _anchored(key: str) -> str:
    return rf"(.*\.)?({key})$"


def read_config(folder: Path) -> dict[str, Any]:
    """The raw config; AdapterRejected where it is missing or not a JSON object."""
    path = folder / CONFIG_FILE
    if not path.is_file():
        raise AdapterRejected(
            "missing_config", f"{folder} has no {CONFIG_FILE}; give the folder that PEFT saved"
        )
    try:
        config = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise AdapterRejected(
            "unreadable_config", f"{path} is not JSON ({error}); save the adapter again with PEFT"
        ) from error
    if not isinstance(config, dict):
        raise AdapterRejected("unreadable_config", f"{path} is not a JSON object")
    return config


def parse_settings(config: Mapping[str, Any]) -> LoraSettings:
    """Refuse what is not plain LoRA, then read ranks and scalings."""
    _refuse_other_types(config)
    _refuse_features(config)
    rank_pattern = _pattern(config, "rank_pattern")
    return LoraSettings(
        rank=_rank("r", config.get("r", 8)),
        alpha=_number("lora_alpha", config.get("lora_alpha", 8)),
        use_rslora=bool(config.get("use_rslora", False)),
        rank_pattern={key: _rank("rank_pattern", value) for key, value in rank_pattern.items()},
        alpha_pattern={
            key: _number("alpha_pattern", value)
            for key, value in _pattern(config, "alpha_pattern").items()
        },
    )


def _refuse_other_types(config: Mapping[str, Any]) -> None:
    if config.get("peft_type") != "LORA":
        raise AdapterRejected(
            "unsupported_type",
            f"peft_type {config.get('peft_type')!r} is not supported; train a LoRA adapter",
        )
    if config.get("task_type") not in TASK_TYPES:
        raise AdapterRejected(
            "unsupported_type",
            f"task_type {config.get('task_type')!r} is not supported; train for CAUSAL_LM",
        )


def _refuse_features(config: Mapping[str, Any]) -> None:
    init = config.get("init_lora_weights", True)
    if isinstance(init, str) and init.lower().startswith(BASE_CHANGING_INITS):
        raise AdapterRejected(
            "unsupported_feature",
            f"init_lora_weights={init!r} changes the base's own weights; save the adapter with "
            "PEFT's path_initial_model_for_weight_conversion to make it a plain LoRA",
        )
    if config.get("bias", "none") != "none":
        raise AdapterRejected(
            "unsupported_feature",
            f"bias={config['bias']!r} is not supported; train with bias='none'",
        )
    for key, value in config.items():
        is_set = value not in (None, False, 0, "", [], {})
        if is_set and key not in INERT_KEYS and key not in READ_KEYS:
            raise AdapterRejected(
                "unsupported_feature",
                f"{key}={str(value)[:80]} in {CONFIG_FILE} is not supported; train without it",
            )


def _pattern(config: Mapping[str, Any], key: str) -> dict[str, Any]:
    pattern = config.get(key)
    if pattern is None:
        return {}
    if not isinstance(pattern, dict):
        raise AdapterRejected("unreadable_config", f"{key} is {pattern!r}, not an object")
    for expression in pattern:
        try:
            re.compile(_anchored(expression))
        except re.error as error:
            raise AdapterRejected(
                "unreadable_config", f"{key}: {expression!r} is no regular expression ({error})"
            ) from error
    return pattern


def _rank(key: str, value: object) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise AdapterRejected("unreadable_config", f"{key} is {value!r}, not a positive integer")
    return value


def _number(key: str, value: object) -> float:
    if isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < MAX_ALPHA:
        return float(value)
    raise AdapterRejected("unreadable_config", f"{key} is {str(value)[:80]}, not a usable number")
