"""What a configuration leaves open, settled from the base and the number of rows: plain numbers.

A resumed run must be the same run: ``identity`` is what has to agree with its checkpoint.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any, Literal

from training.config import TrainingConfig
from training.errors import InvalidConfig

DEFAULT_MAX_LENGTH = 2048
_EVALUATIONS_PER_RUN = 8
_LINES_PER_RUN = 100
_WIDE = 768  # hidden size

Device = Literal["cpu", "amx", "cuda"]  # amx: a CPU with matrix tiles for bfloat16

# Settings that say where and how to work, not what comes out of it.
_INCIDENTAL = {
    "data", "base", "start_from", "home", "output_dir", "description", "license", "limits",
    "resume", "num_threads", "gradient_checkpointing", "logging_steps", "save_steps", "trackers",
    "auto_remedy", "max_bad_rows", "kept_checkpoints", "copy_to_output_dir", "gate", "suite",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Plan:
    """Every number that the loop needs. Steps are optimizer steps."""

    learning_rate: float
    dtype: Literal["float32", "bfloat16", "float16"]
    max_length: int
    total_steps: int
    warmup_steps: int
    eval_steps: int | None  # None: no validation part, the last weights are published
    logging_steps: int


def settle_max_length(config: TrainingConfig, context_length: int) -> int:
    """Raises InvalidConfig if the configuration asks for more than the base can see."""
    if config.max_length is None:
        return min(DEFAULT_MAX_LENGTH, context_length)
    if config.max_length > context_length:
        raise InvalidConfig(
            f"max_length={config.max_length} exceeds the base's context of {context_length} tokens",
            param="max_length",
        )
    return config.max_length


def max_batch_tokens(config: TrainingConfig, max_length: int) -> int | None:
    """How many tokens a packed batch holds; None: batches are counted in rows."""
    return config.batch_size * max_length if config.packing else None


def make_plan(config: TrainingConfig, base_config: Any, num_batches: int, device: Device) -> Plan:
    """``base_config`` is the base's transformers configuration; ``num_batches`` make an epoch."""
    steps_per_epoch = math.ceil(num_batches / config.gradient_accumulation)
    total_steps = config.max_steps
    if total_steps is None:
        total_steps = math.ceil(config.epochs * steps_per_epoch)
    learning_rate = config.learning_rate
    if learning_rate is None:
        learning_rate = 5e-4 * (2000 / base_config.hidden_size) ** 0.78 * _rate_share(config)
    return Plan(
        learning_rate=learning_rate * config.learning_rate_multiplier,
        dtype=_settle_dtype(config, base_config.hidden_size, device),
        max_length=settle_max_length(config, base_config.max_position_embeddings),
        total_steps=total_steps,
        warmup_steps=_settle_warmup(config, total_steps),
        eval_steps=_settle_eval_steps(config, total_steps, steps_per_epoch),
        logging_steps=config.logging_steps or max(1, total_steps // _LINES_PER_RUN),
    )


def _rate_share(config: TrainingConfig) -> float:
    """Of LoRA's rate: what moves all weights, or only away from a reference, needs less."""
    share = 0.1 if config.method in ("full", "freeze") else 1.0
    return share * (0.05 if config.objective == "dpo" else 1.0)


def _settle_warmup(config: TrainingConfig, total_steps: int) -> int:
    if config.lr_scheduler == "plateau":  # it knows no warm-up; asking for one is refused
        return 0
    if config.warmup_steps is not None:
        return config.warmup_steps
    return math.ceil(config.warmup_ratio * total_steps)


def _settle_eval_steps(
    config: TrainingConfig, total_steps: int, steps_per_epoch: int
) -> int | None:
    if config.split[1] == 0 and not config.validation_data:
        return None
    if config.eval_steps == "epoch":
        return steps_per_epoch
    return config.eval_steps or math.ceil(total_steps / _EVALUATIONS_PER_RUN)


def _settle_dtype(
    config: TrainingConfig, hidden_size: int, device: Device
) -> Literal["float32", "bfloat16", "float16"]:
    """On a CPU with matrix tiles, bfloat16 pays once products are large: at width 256 float32 was
    1.5 times as quick, at 896 bfloat16 twice. Whole models keep float32 weights there."""
    if config.dtype != "auto":
        return config.dtype
    trains_adapter = config.method in ("lora", "adalora")
    has_large_products = trains_adapter and hidden_size >= _WIDE
    if device == "cuda" or (device == "amx" and has_large_products):
        return "bfloat16"
    return "float32"


def identity(config: TrainingConfig, plan: Plan, hashes: dict[str, str | None]) -> dict[str, Any]:
    """What decides the outcome of a run; ``hashes`` stand for base, template and data."""
    asked = config.model_dump(mode="json", exclude=_INCIDENTAL)
    asked["data_weights"] = [source.weight for source in config.data]
    if not config.packing:  # then a step sees the same rows, however they are cut into batches
        asked["rows_per_step"] = asked.pop("batch_size") * asked.pop("gradient_accumulation")
    return {**asked, **asdict(plan), **hashes, "logging_steps": None}
