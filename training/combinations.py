"""Which keys mean something together. What would be ignored is refused by name, before any row.

Knows no base and no torch, but asks torch for CUDA where a key needs it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from importlib.util import find_spec
from typing import TYPE_CHECKING

from training.errors import InvalidConfig

if TYPE_CHECKING:
    from training.config import TrainingConfig

Problem = tuple[str, str]  # key, reason

_LORA_KEYS = ("rank", "alpha", "dropout", "target_modules", "layers_to_transform")
_PLAIN_LORA_KEYS = ("use_rslora", "initialisation", "loraplus_ratio", "start_from")
_ADALORA_KEYS = ("adalora_initial_rank", "adalora_warmup_ratio", "adalora_final_ratio",
                 "adalora_interval")  # fmt: skip
_DPO_KEYS = ("dpo_beta", "dpo_loss", "dpo_label_smoothing", "dpo_sft_weight")
_CUDA_OPTIMIZERS = ("adamw_8bit", "paged_adamw_8bit")
MAX_RANK = 256  # as the key ``rank`` allows


def check_combination(config: TrainingConfig) -> None:
    """Raises InvalidConfig naming the first key that cannot be honoured beside the others."""
    for check in _CHECKS:
        for key, reason in check(config):
            raise InvalidConfig(f"{key}={getattr(config, key)!r}: {reason}", param=key)


def check_device(config: TrainingConfig) -> None:
    """Raises InvalidConfig for what this machine lacks: CUDA, for which alone torch is asked, or
    bitsandbytes."""
    wanted = [("optimizer", config.optimizer in _CUDA_OPTIMIZERS, "adamw"),
              ("dtype", config.dtype == "float16", "bfloat16 or float32")]  # fmt: skip
    for key, needs_cuda, instead in wanted:
        if needs_cuda and not _has_cuda():
            raise InvalidConfig(
                f"{key}={getattr(config, key)!r} needs a CUDA device, and there is none; take "
                f"{instead}",
                param=key,
            )
    if config.quantization != "none" and find_spec("bitsandbytes") is None:
        raise InvalidConfig(
            f"quantization={config.quantization!r} needs bitsandbytes; install it with: "
            "pip install 'loraloop[quantization]'",
            param="quantization",
        )


def _has_cuda() -> bool:
    import torch

    return torch.cuda.is_available()


def _changed(config: TrainingConfig, keys: tuple[str, ...]) -> Iterator[str]:
    """Those of ``keys`` that differ from their defaults."""
    for key in keys:
        if getattr(config, key) != type(config).model_fields[key].default:
            yield key


def _method(config: TrainingConfig) -> Iterator[Problem]:
    method = config.method
    if method in ("full", "freeze"):
        for key in _changed(config, (*_LORA_KEYS, *_PLAIN_LORA_KEYS, "quantization")):
            yield key, f"method={method} trains the base's own weights, not an adapter"
        for key in _changed(config, ("suite", "gate", "kept_checkpoints")):
            yield key, f"is for adapters, which method={method} does not make"
    if method != "adalora":
        for key in _changed(config, _ADALORA_KEYS):
            yield key, f"belongs to method=adalora, this is {method}"
    if method != "freeze":
        for key in _changed(config, ("trainable_layers",)):
            yield key, f"belongs to method=freeze, this is {method}"
    elif config.trainable_layers == 0:
        yield "trainable_layers", "no layer would be trained; take 2 for the last two, -2 the first"


def _adalora(config: TrainingConfig) -> Iterator[Problem]:
    if config.method != "adalora":
        return
    for key in _changed(config, (*_PLAIN_LORA_KEYS, "quantization")):
        yield key, "method=adalora does not support it; take method=lora"
    initial = config.adalora_initial_rank
    if initial is not None and not config.rank < initial <= MAX_RANK:
        yield "adalora_initial_rank", f"must be above rank={config.rank} and at most {MAX_RANK}"
    if initial is None and config.rank * 3 // 2 > MAX_RANK:
        yield "rank", f"adalora begins with 1.5 × rank, at most {MAX_RANK}"
    if config.adalora_warmup_ratio + config.adalora_final_ratio >= 1:
        yield "adalora_final_ratio", "with adalora_warmup_ratio no step is left to share ranks out"


def _initialisation(config: TrainingConfig) -> Iterator[Problem]:
    initialisation = config.initialisation
    if config.start_from is not None:
        for key in _changed(config, ("initialisation", "layers_to_transform")):
            yield key, f"start_from={config.start_from} decides it; leave it out"
    if initialisation in ("pissa", "olora"):
        if 2 * config.rank > MAX_RANK:
            yield (
                "rank",
                (
                    f"initialisation={initialisation} is published with twice the rank, at most "
                    f"{MAX_RANK}; take rank {MAX_RANK // 2} or less"
                ),
            )
        if config.quantization != "none":
            yield (
                "initialisation",
                (
                    "it moves a part of the base's weights into the adapter, and a quantised base "
                    "cannot give it back exactly; take default or gaussian"
                ),
            )


def _quantization(config: TrainingConfig) -> Iterator[Problem]:
    if not config.double_quantization and config.quantization != "nf4":
        yield "double_quantization", f"belongs to nf4, quantization is {config.quantization}"


def _dpo(config: TrainingConfig) -> Iterator[Problem]:
    if config.objective != "dpo":
        for key in _changed(config, _DPO_KEYS):
            yield key, f"belongs to objective=dpo, this is {config.objective}"
        return
    if config.method in ("full", "freeze"):
        yield "method", "objective=dpo trains an adapter; take lora or adalora"
    if config.dpo_loss != "sigmoid":
        for key in _changed(config, ("dpo_label_smoothing",)):
            yield key, f"belongs to dpo_loss=sigmoid, this is {config.dpo_loss}"
    for key in _changed(config, ("packing", "streaming", "long_rows", "sampling")):
        yield key, "objective=dpo compares two whole replies and does not support it"


def _schedule(config: TrainingConfig) -> Iterator[Problem]:
    if config.lr_scheduler != "plateau":
        return
    if config.split[1] == 0 and not config.validation_data:
        yield (
            "lr_scheduler",
            (
                "plateau lowers the rate when the validation loss stands still; give split a "
                "validation part, or validation_data"
            ),
        )
    for key in ("warmup_steps", "warmup_ratio"):
        if key in config.model_fields_set and getattr(config, key):
            yield key, "lr_scheduler=plateau has no warm-up; leave it out or take another schedule"


_CHECKS: tuple[Callable[[TrainingConfig], Iterator[Problem]], ...] = (
    _method, _adalora, _initialisation, _quantization, _dpo, _schedule,
)  # fmt: skip
