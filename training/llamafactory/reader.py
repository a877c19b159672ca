"""A LLaMA-Factory file as training's settings, and what of it has no meaning here."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from typing import Any

from training.errors import InvalidConfig
from training.llamafactory.entries import Entry, Idle, Refused, Taken
from training.llamafactory.keys import KEYS
from training.llamafactory.keys.export import EXPORT
from training.llamafactory.settle import SETTLED, TEST_SHARE, Unsettled

MARKS = frozenset({"model_name_or_path", "finetuning_type", "stage", "dataset_dir"})

# Where nothing is said, their defaults hold: the same file is the same run.
DEFAULTS: dict[str, Any] = {
    "learning_rate": 5e-5,
    "epochs": 3.0,
    "batch_size": 8,
    "rank": 8,
    "lr_scheduler": "linear",
    "early_stopping_patience": None,
    "gradient_checkpointing": True,
    "near_duplicates": "off",
    "seed": 42,
}
_GATE_NOTE = (
    f"{TEST_SHARE:.0%} of the rows are held back for the gate, which compares the result with the "
    "base on rows that nobody trained on; test_data=… brings rows of your own instead"
)


def is_llamafactory(settings: Mapping[str, Any]) -> bool:
    """Whether a YAML file speaks LLaMA-Factory's language."""
    return bool(MARKS & settings.keys())


def translate(theirs: dict[str, Any], ours: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """``theirs`` in training's keys, and sentences for whoever starts the run.

    ``ours`` are settings in training's own words, which win. Raises InvalidConfig naming the key,
    the value and the remedy.
    """
    settings: dict[str, Any] = dict(DEFAULTS)
    idle: dict[str, str] = {}
    for key, value in theirs.items():
        match entry_of(key):
            case Idle(reason) if value is not None:
                idle[key] = reason
            case Refused() as refused:
                refused.check(key, value)
            case Taken(to, _, read) if read is not None and value is not None:
                try:
                    settings[to] = read(value)
                except ValueError as error:
                    raise InvalidConfig(f"{key}={value!r}: {error}", param=key) from error
            case _:
                pass
    for key in EXPORT.keys() & theirs.keys():
        raise InvalidConfig(f"{key} belongs to an export: `loraloop export FILE.yaml`", param=key)
    for settle in SETTLED:
        try:
            settings |= settle(theirs)
        except Unsettled as problem:
            raise InvalidConfig(str(problem), param=problem.key) from problem
    _leave_out(settings)
    settings |= ours
    return settings, _notes(settings, ours, idle)


def entry_of(key: str) -> Entry:
    """Raises InvalidConfig with the nearest known key."""
    if key in KEYS:
        return KEYS[key]
    near = difflib.get_close_matches(str(key), [*KEYS], n=1)
    hint = f"did you mean {near[0]!r}?" if near else "docs/llama-factory.md lists those that are"
    raise InvalidConfig(f"unknown LLaMA-Factory key {key!r}; {hint}", param=str(key))


def _leave_out(settings: dict[str, Any]) -> None:
    """What theirs ignores: LoRA's keys where none is trained, or where an adapter decides them."""
    if settings.get("method") in ("full", "freeze") or "start_from" in settings:
        for key in ("rank", "alpha", "target_modules", "use_rslora", "initialisation"):
            settings.pop(key, None)
    if settings.get("method") in ("full", "freeze"):
        for key in ("dropout", "loraplus_ratio"):
            settings.pop(key, None)
    if settings.get("method") != "freeze":
        settings.pop("trainable_layers", None)
    if settings.get("quantization") != "nf4":
        settings.pop("double_quantization", None)
    if settings.get("objective") != "dpo":
        for key in ("dpo_beta", "dpo_loss", "dpo_label_smoothing", "dpo_sft_weight"):
            settings.pop(key, None)


def _notes(
    settings: Mapping[str, Any], ours: Mapping[str, Any], idle: Mapping[str, str]
) -> list[str]:
    notes = [f"{key}: {reason}" for key, reason in idle.items()]
    if settings["split"][2] == TEST_SHARE and "split" not in ours:
        notes.append(_GATE_NOTE)
    return notes
