"""How many rows an entry of dataset_info.json has, for shares that are given as numbers of rows."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from training.errors import InvalidConfig


def num_rows(theirs: dict[str, Any], name: str) -> int:
    """Rows of one entry, at most ``max_samples``. Reads the file once.

    Raises InvalidConfig for an entry of the hub and one that is not there, InvalidData for a file
    that cannot be read.
    """
    from training.data.files.open import DataFile

    folder = Path(str(theirs.get("dataset_dir", "data")))
    path = folder / "dataset_info.json"
    try:
        entry = json.loads(path.read_text(encoding="utf-8-sig"))[name]
        file = folder / entry["file_name"]
    except OSError as error:
        raise InvalidConfig(f"cannot read {path}: {error.strerror}", param="dataset_dir") from error
    except (ValueError, KeyError, TypeError) as error:
        raise InvalidConfig(
            f"{path} has no entry {name!r} with a file_name, whose rows could be counted: give "
            "val_size as a share, and mix_strategy concat",
            param="dataset",
        ) from error
    counted = sum(1 for _ in DataFile(file).rows())
    limit = theirs.get("max_samples")
    return counted if limit is None else min(counted, limit)
