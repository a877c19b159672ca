"""Rows that an adapter was never trained on, kept under the home for later comparisons.

They are customers' words, so they stay beside the registry and never travel with an adapter.
``heldout/<content hash>.jsonl``: one row a line, as token ids of the base it was trained on.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from artifacts.errors import Corrupt
from artifacts.home import Home
from artifacts.safe_write import write_bytes
from artifacts.storage import storage_errors

MAX_ROWS = 64
MAX_TOKENS = 512  # of a row; the rest is cut off


@dataclass(frozen=True, slots=True)
class HeldOutRow:
    """A rendered conversation; what follows ``num_prompt`` is the reply that was to be learned."""

    token_ids: tuple[int, ...]
    num_prompt: int


def heldout_path(home: Home, content_hash: str) -> Path:
    return home.root / "heldout" / f"{content_hash}.jsonl"


def write_heldout(home: Home, content_hash: str, rows: Sequence[HeldOutRow]) -> None:
    """The first `MAX_ROWS` of them. Raises StorageError."""
    path = heldout_path(home, content_hash)
    lines = [json.dumps(asdict(row)) for row in rows[:MAX_ROWS]]
    with storage_errors(path):
        path.parent.mkdir(exist_ok=True)
        write_bytes(path, ("\n".join(lines) + "\n").encode())


def read_heldout(home: Home, content_hash: str) -> list[HeldOutRow]:
    """Nothing where none were kept: the adapter was made elsewhere. Raises Corrupt."""
    path = heldout_path(home, content_hash)
    if not path.is_file():
        return []
    try:
        found = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        return [HeldOutRow(tuple(row["token_ids"]), row["num_prompt"]) for row in found]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise Corrupt(f"{path} cannot be read ({error}); delete it to go without") from error
