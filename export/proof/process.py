"""Runs a proof in a process of its own, on the files on disk. No torch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from export.proof.report import Proof

OnProgress = Callable[[int, int, str], None]


@dataclass(frozen=True, slots=True)
class ProofAsk:
    """Where the reference comes from, and what is asked. None: as the export's record says."""

    base: str | None = None
    adapter: str | None = None
    prompts: Path | None = None  # JSONL with "messages" or "text", or plain text lines
    max_prompts: int = 32


def prove_in_fresh_process(
    folders: Sequence[Path], ask: ProofAsk, on_progress: OnProgress
) -> list[Proof]:
    """One process for all folders, which share adapter and base; each gets its ``proof.json``.

    Raises InvalidInput, NotFound, Corrupt and LoraloopError with what the child said last.
    """
    raise NotImplementedError
