"""LLaMA-Factory's files that merge an adapter into its base. Knows no merging."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from training.errors import InvalidConfig
from training.llamafactory.entries import Idle, Refused, listed
from training.llamafactory.reader import entry_of
from training.yaml_file import read_yaml

USED = ("model_name_or_path", "adapter_name_or_path", "export_dir", "export_size")
_QUANTISED = "merge into the base as it is, not into a quantised one"


@dataclass(frozen=True, slots=True)
class ExportFile:
    """What a file asks for, and sentences about what of it has no meaning here."""

    adapter: str
    base: str | None = None
    output: Path | None = None
    shard_gb: float | None = None
    notes: tuple[str, ...] = ()


def read_export(path: Path) -> ExportFile:
    """Raises InvalidConfig naming the key, the value and the remedy."""
    settings, notes = read_yaml(path), []
    for key, value in settings.items():
        match entry_of(key):
            case Refused() as refused:
                refused.check(key, value)
            case Idle(reason):
                notes.append(f"{key}: {reason}")
            case _ if key == "quantization_bit" and value is not None:
                raise InvalidConfig(f"{key}={value!r}: {_QUANTISED}", param=key)
            case _ if key not in USED:
                notes.append(f"{key}: belongs to training")
    for key in USED[:3]:
        if not settings.get(key):
            raise InvalidConfig(f"{key} is missing", param=key)
    adapters = listed(settings["adapter_name_or_path"])
    if len(adapters) != 1:
        raise InvalidConfig(
            f"adapter_name_or_path names {len(adapters)} adapters; merge one, then the next into "
            "the result",
            param="adapter_name_or_path",
        )
    return ExportFile(
        base=str(settings["model_name_or_path"]),
        adapter=adapters[0],
        output=Path(str(settings["export_dir"])),
        shard_gb=_size(settings["export_size"]) if "export_size" in settings else None,
        notes=tuple(notes),
    )


def _size(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not value > 0:
        raise InvalidConfig(
            f"export_size={value!r} is no number of GB above 0", param="export_size"
        )
    return float(value)
