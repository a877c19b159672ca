"""LoRA weights from a PEFT folder, and the checks that they are whole and fit a base.

safetensors only: nothing here can run code from the folder. Where an adapter sits is read from its
tensors' names, which are the truth whatever ``target_modules`` says. Knows neither registry nor
engine.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load as parse_tensors

from artifacts.adapter_config import CONFIG_FILE, LoraSettings, parse_settings, read_config
from artifacts.architecture import linear_shapes
from artifacts.errors import AdapterRejected
from artifacts.storage import storage_errors

__all__ = [
    "CONFIG_FILE",
    "WEIGHTS_FILE",
    "LoraPair",
    "LoraWeights",
    "check_adapter",
    "contained",
    "find_weights",
    "linear_shapes",
    "read_adapter",
]

WEIGHTS_FILE = "adapter_model.safetensors"
PICKLE_SUFFIXES = {".bin", ".pt", ".pth", ".pkl", ".ckpt"}
TENSOR_NAME = re.compile(r"base_model\.model\.(?P<module>.+)\.lora_(?P<side>[AB])\.weight")
DTYPES = {torch.float16, torch.bfloat16, torch.float32}


@dataclass(frozen=True)
class LoraPair:
    """One module's update: ``y += scaling * (x @ a.T) @ b.T``."""

    a: torch.Tensor  # [rank, in]
    b: torch.Tensor  # [out, rank]
    scaling: float

    @property
    def rank(self) -> int:
        return int(self.a.shape[0])

    @property
    def has_effect(self) -> bool:
        return self.scaling != 0 and bool(self.a.any()) and bool(self.b.any())


@dataclass(frozen=True)
class LoraWeights:
    """One adapter in memory; ``pairs`` is keyed by module path as in the base."""

    pairs: dict[str, LoraPair]  # "model.layers.0.self_attn.q_proj" → pair, sorted
    rank: int  # the largest
    alpha: float  # lora_alpha, before patterns
    target_modules: tuple[str, ...]  # last parts of the module paths, sorted
    content_hash: str
    num_bytes: int
    config: dict[str, Any]  # adapter_config.json as it stands

    @property
    def num_parameters(self) -> int:
        return sum(pair.a.numel() + pair.b.numel() for pair in self.pairs.values())


def read_adapter(folder: Path) -> LoraWeights:
    """Read a PEFT LoRA folder into memory of our own.

    Raises AdapterRejected: missing_config, unreadable_config, unsupported_type,
    unsupported_feature, missing_weights, pickle_refused, unreadable_weights, unknown_tensor,
    unsupported_dtype, shape_mismatch, not_finite, zero_effect. Raises StorageError where the disk
    fails rather than the adapter.
    """
    config = read_config(folder)
    settings = parse_settings(config)
    pairs = _pair(_read_tensors(find_weights(folder)), settings)
    if not any(pair.has_effect for pair in pairs.values()):
        raise AdapterRejected(
            "zero_effect",
            f"{folder}: every update is zero (lora_B untrained, or alpha 0), so the adapter "
            "would answer as the base; train it first",
        )
    return LoraWeights(
        pairs=pairs,
        rank=max(pair.rank for pair in pairs.values()),
        alpha=settings.alpha,
        target_modules=tuple(sorted({module.rpartition(".")[2] for module in pairs})),
        content_hash=_content_hash(pairs),
        num_bytes=sum(pair.a.nbytes + pair.b.nbytes for pair in pairs.values()),
        config=config,
    )


def check_adapter(
    weights: LoraWeights, shapes: Mapping[str, tuple[int, int]], *, max_rank: int
) -> None:
    """Refuse an adapter that does not fit ``shapes`` (module → (out, in)) or ``max_rank``.

    Raises AdapterRejected: no_module, unsupported_feature, unknown_module, shape_mismatch,
    rank_too_high.
    """
    if not weights.pairs:
        raise AdapterRejected("no_module", "the adapter changes no module")
    for module, pair in weights.pairs.items():
        if module not in shapes:
            _refuse_module(module, shapes)
        out, inner = shapes[module]
        found = (pair.b.shape[0], pair.a.shape[1])
        if found != (out, inner):
            raise AdapterRejected(
                "shape_mismatch",
                f"{module} is {found[0]}x{found[1]} in the adapter and {out}x{inner} in the base; "
                "load it on the base that it was trained on",
            )
        if pair.rank > max_rank:
            raise AdapterRejected(
                "rank_too_high",
                f"{module} has rank {pair.rank}, allowed is {max_rank}; raise the limit "
                "(max_rank) or train with a lower rank",
            )


def contained(path: Path, roots: Sequence[Path]) -> Path:
    """The real path, links followed, if it lies under one of ``roots``; else path_escape."""
    try:
        real = path.expanduser().resolve()
        allowed = [root.resolve() for root in roots]
    except (OSError, ValueError, RuntimeError) as error:
        raise AdapterRejected("path_escape", f"{str(path)!r} is not a usable path") from error
    if not any(real.is_relative_to(root) for root in allowed):
        raise AdapterRejected(
            "path_escape",
            f"{path} lies outside {', '.join(str(root) for root in allowed)}; copy the adapter "
            "there, or allow its folder with LORALOOP_ADAPTER_ROOT",
        )
    return real


def find_weights(folder: Path) -> Path:
    """The weights file; AdapterRejected says whether only pickles are there or nothing."""
    path = folder / WEIGHTS_FILE
    if path.is_file():
        return path
    pickles = [entry.name for entry in folder.iterdir() if entry.suffix in PICKLE_SUFFIXES]
    if pickles:
        raise AdapterRejected(
            "pickle_refused",
            f"{folder} holds {sorted(pickles)[0]}, a pickle, which can run code when read; save "
            f"the adapter as {WEIGHTS_FILE} (PEFT: save_pretrained with safetensors)",
        )
    raise AdapterRejected("missing_weights", f"{folder} has no {WEIGHTS_FILE}")


def _refuse_module(module: str, shapes: Mapping[str, tuple[int, int]]) -> None:
    if module.rpartition(".")[2] in {"lm_head", "embed_tokens"}:
        raise AdapterRejected(
            "unsupported_feature",
            f"an adapter on {module} is not supported; train with the linear layers of the "
            "decoder only (target_modules='all-linear')",
        )
    raise AdapterRejected(
        "unknown_module",
        f"the base has no linear layer {module} (it has, for example, {next(iter(shapes))}); "
        "load the adapter on the base that it was trained on",
    )


def _read_tensors(path: Path) -> dict[str, torch.Tensor]:
    """Every tensor in memory of our own.

    Read, not mapped: a file that shrinks or fails under a mapping kills the process (SIGBUS).
    """
    try:
        with storage_errors(path):
            return dict(sorted(parse_tensors(path.read_bytes()).items()))
    except (SafetensorError, OSError, ValueError, RuntimeError) as error:
        raise AdapterRejected(
            "unreadable_weights",
            f"{path} is not a whole safetensors file ({error}); copy or save it again",
        ) from error


def _pair(tensors: Mapping[str, torch.Tensor], settings: LoraSettings) -> dict[str, LoraPair]:
    sides: dict[str, dict[str, torch.Tensor]] = {}
    for name, tensor in tensors.items():
        match = TENSOR_NAME.fullmatch(name)
        if match is None:
            _refuse_tensor(name)
        else:
            _check_tensor(name, tensor)
            sides.setdefault(match["module"], {})[match["side"]] = tensor
    if not sides:
        raise AdapterRejected("no_module", "the weights file holds no lora_A and lora_B tensor")
    return {module: _one_pair(module, sides[module], settings) for module in sorted(sides)}


def _one_pair(module: str, sides: Mapping[str, torch.Tensor], settings: LoraSettings) -> LoraPair:
    if len(sides) != 2:
        absent = "B" if "A" in sides else "A"
        raise AdapterRejected("shape_mismatch", f"{module} has no lora_{absent}; save it again")
    a, b = sides["A"], sides["B"]
    rank = settings.rank_of(module)
    if a.shape[0] != rank or b.shape[1] != rank:
        raise AdapterRejected(
            "shape_mismatch",
            f"{module}: {CONFIG_FILE} says rank {rank}, lora_A is {list(a.shape)} and lora_B "
            f"{list(b.shape)}; config and weights do not belong together",
        )
    return LoraPair(a, b, settings.scaling_of(module))


def _check_tensor(name: str, tensor: torch.Tensor) -> None:
    if tensor.dtype not in DTYPES:
        raise AdapterRejected(
            "unsupported_dtype",
            f"{name} is {tensor.dtype}; save it as float16, bfloat16 or float32",
        )
    if tensor.dim() != 2:
        raise AdapterRejected("shape_mismatch", f"{name} has shape {list(tensor.shape)}, not 2-D")
    if not bool(torch.isfinite(tensor).all()):
        raise AdapterRejected(
            "not_finite", f"{name} holds NaN or infinity: the training diverged; lower its rate"
        )


def _refuse_tensor(name: str) -> None:
    """Say which feature an unexpected tensor belongs to."""
    features = {
        "lora_embedding_": "an adapter on an embedding",
        "lora_magnitude_vector": "DoRA",
        "modules_to_save": "modules_to_save",
        "lora_B.bias": "lora_bias",
        "token_adapter": "trainable_token_indices",
    }
    for part, feature in features.items():
        if part in name:
            raise AdapterRejected(
                "unsupported_feature", f"{name}: {feature} is not supported; train without it"
            )
    raise AdapterRejected(
        "unknown_tensor",
        f"{name} is not 'base_model.model.<module>.lora_A|B.weight'; only plain LoRA is supported "
        "(modules_to_save and trained embeddings are not)",
    )


def _content_hash(pairs: Mapping[str, LoraPair]) -> str:
    """SHA-256 over what the adapter does: per module scaling, dtypes, shapes and bytes."""
    digest = hashlib.sha256(b"loraloop-adapter-1\n")
    for module in sorted(pairs):
        pair = pairs[module]
        sides = [(str(side.dtype), list(side.shape)) for side in (pair.a, pair.b)]
        digest.update(json.dumps([module, pair.scaling.hex(), *sides]).encode())
        for side in (pair.a, pair.b):
            digest.update(side.contiguous().view(torch.uint8).numpy().data)
    return digest.hexdigest()
