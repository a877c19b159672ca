"""Rows that an adapter was never trained on, kept under the home for later comparisons.

They are customers' words, so they stay beside the registry, never travel with an adapter, and go
with the last version that has its content. ``heldout/<content hash>.jsonl``: one row a line, as
token ids of the base it was trained on.
"""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from artifacts.errors import Corrupt
from artifacts.home import Home
from artifacts.safe_write import sync_folder, write_bytes
from artifacts.scratch import scratch_folder
from artifacts.storage import storage_errors

log = logging.getLogger("loraloop.artifacts")

MAX_ROWS = 64
MAX_TOKENS = 512  # of a row: of a longer one, the prompt's beginning is cut off first
_HASH = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True, slots=True)
class HeldOutRow:
    """A rendered conversation; what follows ``num_prompt`` is the reply that was to be learned."""

    token_ids: tuple[int, ...]
    num_prompt: int


def heldout_path(home: Home, content_hash: str) -> Path:
    return home.heldout / f"{content_hash}.jsonl"


def write_heldout(home: Home, content_hash: str, rows: Sequence[HeldOutRow]) -> None:
    """The first `MAX_ROWS` of them; no file for none. Raises StorageError.

    Only once a version with this content is registered: see `heldout_hashes`.
    """
    if not rows:
        return
    path = heldout_path(home, content_hash)
    lines = [json.dumps(asdict(row)) for row in rows[:MAX_ROWS]]
    with storage_errors(path), scratch_folder(home.tmp, "heldout-") as scratch:
        home.heldout.mkdir(exist_ok=True)
        write_bytes(scratch / path.name, ("\n".join(lines) + "\n").encode())
        (scratch / path.name).replace(path)
        sync_folder(home.heldout)


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


def heldout_hashes(home: Home) -> set[str]:
    """Contents that rows are kept of. Their versions are registered by now, or are gone."""
    return {path.stem for path in home.heldout.glob("*.jsonl") if _HASH.fullmatch(path.stem)}


def remove_heldout(home: Home, content_hash: str) -> None:
    """Deletes the rows of a content that no version has. What cannot be deleted now is swept."""
    path = heldout_path(home, content_hash)
    try:
        path.unlink(missing_ok=True)
    except OSError as error:
        log.warning("%s could not be deleted yet: %s", path, error)
