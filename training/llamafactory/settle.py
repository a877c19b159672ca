"""Keys of LLaMA-Factory's that only together say something: data, parts, warm-up, resume, trackers.

Each function takes all of their keys and returns some of ours. ValueError says what cannot be done.
"""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any

from training.llamafactory.entries import listed
from training.llamafactory.rows import num_rows

Theirs = dict[str, Any]
Ours = dict[str, Any]

TEST_SHARE = 0.05  # of the rows; the gate needs some that were never trained on
DEFAULT_CUTOFF = 2048
ONLINE = "ONLINE"
KNOWN_TRACKERS = ("tensorboard", "mlflow", "wandb", "swanlab")


class Unsettled(ValueError):
    """Values that do not go together; ``key`` is the one to change."""

    def __init__(self, key: str, message: str) -> None:
        super().__init__(message)
        self.key = key


def _number(theirs: Theirs, key: str, default: float = 0) -> float:
    """YAML 1.1 reads ``1e-1`` as text."""
    value = theirs.get(key)
    try:
        return float(default if value is None else value)
    except (TypeError, ValueError):
        raise Unsettled(key, f"{key}={value!r} is not a number") from None


def name_of(theirs: Theirs) -> Ours:
    """The adapter's name: the last parts of output_dir, ``llama3-8b-lora-sft``."""
    given = theirs.get("output_dir")
    if given is None:
        raise Unsettled("output_dir", "output_dir is missing; it also names the adapter")
    parts = [part for part in Path(str(given)).parts if part not in ("/", ".", "..", "saves")]
    name = re.sub(r"[^a-z0-9._-]+", "-", "-".join(parts[-3:]).lower()).strip("-._")[:64]
    return {"name": name or "tuned", "output_dir": str(given), "copy_to_output_dir": True}


def sources(theirs: Theirs) -> Ours:
    """``data``: one source per name, with its share in the mix."""
    names = listed(theirs.get("dataset") or [])
    if not names:
        raise Unsettled("dataset", "dataset is missing; name entries of dataset_info.json")
    found = _sources_of(theirs, names)
    for source, weight in zip(found, _weights(theirs, names), strict=True):
        if weight != 1:
            source["weight"] = weight
    return {"data": found}


def _sources_of(theirs: Theirs, names: list[str]) -> list[dict[str, Any]]:
    folder = str(theirs.get("dataset_dir", "data"))
    if folder.startswith("REMOTE:"):
        raise Unsettled("dataset_dir", f"dataset_dir={folder!r}: copy the folder here")
    prefix = "hub:" if folder == ONLINE else f"{Path(folder) / 'dataset_info.json'}:"
    extra: dict[str, Any] = {}
    if theirs.get("stage") == "pt":
        extra["form"] = "text"
    if theirs.get("max_samples") is not None:
        extra["num_samples"] = theirs["max_samples"]
    return [{"path": prefix + name, **extra} for name in names]


def _weights(theirs: Theirs, names: list[str]) -> list[float]:
    """How often each row of a source is shown per epoch.

    ``interleave_under`` ends with the source that is used up first, ``interleave_over`` with the
    last one, as ``datasets.interleave_datasets`` does.
    """
    strategy = theirs.get("mix_strategy", "concat")
    if strategy not in ("concat", "interleave_under", "interleave_over"):
        raise Unsettled("mix_strategy", f"mix_strategy={strategy!r} is not known")
    given = theirs.get("interleave_probs")
    if strategy == "concat":
        if given is not None:
            raise Unsettled(
                "interleave_probs", "interleave_probs needs an interleaving mix_strategy"
            )
        return [1.0] * len(names)
    try:
        shares = [float(word) for word in listed(given)] if given else [1.0] * len(names)
    except ValueError:
        shares = []
    if len(shares) != len(names) or min(shares) <= 0:
        raise Unsettled(
            "interleave_probs", f"interleave_probs={given!r}: {len(names)} shares are needed"
        )
    sizes = [num_rows(theirs, name) for name in names]
    longest = [size * sum(shares) / share for size, share in zip(sizes, shares, strict=True)]
    total = min(longest) if strategy == "interleave_under" else max(longest)
    return [round(total / each, 6) for each in longest]


def parts(theirs: Theirs) -> Ours:
    """``split``, ``validation_data``, ``test_data``: what is held back, and for when."""
    strategy, size = strategy_of(theirs), _number(theirs, "val_size")
    names = listed(theirs.get("eval_dataset") or [])
    if names and size:
        raise Unsettled("val_size", "give either eval_dataset or val_size")
    if names:
        held_out = _sources_of(theirs, names)
        if strategy == "no":
            return {"test_data": held_out, "split": [1.0, 0.0, 0.0]}
        return {"validation_data": held_out, "split": _split(0.0, TEST_SHARE)}
    share = size if size < 1 else _share(theirs, size)
    if strategy == "no":
        return {"split": _split(0.0, share or TEST_SHARE)}
    if not size:
        raise Unsettled("eval_strategy", f"eval_strategy={strategy} needs val_size or eval_dataset")
    return {"split": _split(share, TEST_SHARE)}


def _split(validation: float, test: float) -> list[float]:
    return [round(1 - validation - test, 9), validation, test]


def _share(theirs: Theirs, size: float) -> float:
    total = sum(num_rows(theirs, name) for name in listed(theirs.get("dataset") or []))
    if size >= total:
        raise Unsettled("val_size", f"val_size={size:g} of {total} rows leaves nothing to train on")
    return float(size / total)


def strategy_of(theirs: Theirs) -> str:
    """``no`` is a boolean in YAML 1.1."""
    strategy = theirs.get("eval_strategy", theirs.get("evaluation_strategy", "no"))
    return "no" if strategy in (None, False) else str(strategy)


def evaluations(theirs: Theirs) -> Ours:
    """``eval_steps``."""
    match strategy_of(theirs):
        case "no":
            return {}
        case "epoch":
            return {"eval_steps": "epoch"}
        case "steps":
            return {"eval_steps": theirs.get("eval_steps") or theirs.get("logging_steps") or 500}
        case other:
            raise Unsettled("eval_strategy", f"eval_strategy={other!r}; known: no, steps, epoch")


def checkpoints(theirs: Theirs) -> Ours:
    """``save_steps``: theirs saves every 500 steps where nothing is said."""
    strategy = theirs.get("save_strategy", "steps")
    return {"save_steps": theirs.get("save_steps") or 500} if strategy == "steps" else {}


def start(theirs: Theirs) -> Ours:
    """``resume`` and ``start_from``."""
    ours: Ours = {}
    wanted = theirs.get("resume_from_checkpoint")
    if wanted not in (None, False):
        ours["resume"] = wanted
    else:
        ours["resume"] = "overwrite" if theirs.get("overwrite_output_dir") else True
    adapters = listed(theirs.get("adapter_name_or_path") or [])
    if len(adapters) > 1:
        raise Unsettled(
            "adapter_name_or_path",
            f"adapter_name_or_path names {len(adapters)} adapters, and training goes on from one; "
            "merge them first",
        )
    return ours | ({"start_from": adapters[0]} if adapters else {})


def schedule(theirs: Theirs) -> Ours:
    """Warm-up; transformers' ``constant`` has none, and ``warmup_steps`` below 1 is a ratio."""
    if theirs.get("lr_scheduler_type") == "constant":
        return {"warmup_ratio": 0.0}
    steps = _number(theirs, "warmup_steps")
    if steps >= 1:
        return {"warmup_steps": math.ceil(steps)}
    return {"warmup_ratio": steps or _number(theirs, "warmup_ratio")}


def lengths(theirs: Theirs) -> Ours:
    """``max_length`` and packing; plain text is cut into windows, none of it is lost."""
    ours: Ours = {}
    cutoff = theirs.get("cutoff_len", DEFAULT_CUTOFF)
    if cutoff != DEFAULT_CUTOFF:  # ours: at most 2048, and never more than the base can see
        ours["max_length"] = cutoff
    is_text = theirs.get("stage") == "pt"
    if is_text:
        ours |= {"long_rows": "window", "window_overlap": 1}
    packing = theirs.get("packing")
    ours["packing"] = bool(theirs.get("neat_packing") or (is_text if packing is None else packing))
    return ours


def numbers(theirs: Theirs) -> Ours:
    """``dtype``."""
    if theirs.get("bf16") and theirs.get("fp16"):
        raise Unsettled("fp16", "bf16 and fp16 are both true; choose one")
    if theirs.get("bf16"):
        return {"dtype": "bfloat16"}
    return {"dtype": "float16"} if theirs.get("fp16") else {}


def trackers(theirs: Theirs) -> Ours:
    """``trackers``; ``none`` is none, no key is TensorBoard alone."""
    given = theirs.get("report_to")
    names = ["tensorboard"] if given is None else [n for n in listed(given) if n != "none"]
    names += ["swanlab"] if theirs.get("use_swanlab") and "swanlab" not in names else []
    for name in names:
        if name not in KNOWN_TRACKERS:
            known = ", ".join(KNOWN_TRACKERS)
            raise Unsettled("report_to", f"report_to={name!r}; known: none, {known}")
    return {"trackers": names}


SETTLED = (
    name_of, sources, parts, evaluations, checkpoints, start, schedule, lengths, numbers, trackers,
)  # fmt: skip
