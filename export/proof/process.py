"""Runs a proof in a process of its own, on the files on disk. No torch.

A fresh process has nothing of the exporter's memory: what it loads is what lies on the disk. It
speaks JSON lines on stdout, and ends when its stdin does, which is when its parent is gone.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from artifacts import errors
from artifacts.errors import InvalidInput, LoraloopError
from export.proof.report import Proof

OnProgress = Callable[[int, int, str], None]
MAX_PROMPTS = 32  # unless told otherwise, which is also the fewest
_ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True, slots=True)
class ProofAsk:
    """Where the reference comes from, and what is asked. None: as the export's record says."""

    base: str | None = None
    adapter: str | None = None
    prompts: Path | None = None  # JSONL with "messages" or "text", or plain text lines
    max_prompts: int = MAX_PROMPTS


def prove_in_fresh_process(
    folders: Sequence[Path], ask: ProofAsk, on_progress: OnProgress
) -> list[Proof]:
    """One process for all folders, which share adapter and base; each gets its ``proof.json``.

    Raises what the child raised (InvalidInput, InvalidData, NotFound, Corrupt, StorageError), and
    LoraloopError with its last words where it crashed.
    """
    proofs: dict[str, Proof] = {}
    with tempfile.TemporaryFile() as said:
        child = subprocess.Popen(
            _command(folders, ask),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=said,
            env=_environment(),
        )
        try:
            for event in _events(child):
                if event["event"] == "progress":
                    on_progress(event["done"], event["total"], event["what"])
                elif event["event"] == "proof":
                    proofs[event["folder"]] = Proof.model_validate(event["proof"])
                elif event["event"] == "failed":
                    raise _as_error(event)
            exit_code = child.wait()
        finally:
            child.kill()
            child.communicate()
        if exit_code or len(proofs) < len(folders):
            waiting = [str(folder) for folder in folders if str(folder) not in proofs]
            raise LoraloopError(
                f"the proof of {', '.join(waiting) or 'all'} ended with exit code {exit_code}: "
                f"{_last_line(said)}"
            )
    return [proofs[str(folder)] for folder in folders]


def _command(folders: Sequence[Path], ask: ProofAsk) -> list[str]:
    options = {"--model": ask.base, "--adapter": ask.adapter, "--prompts": ask.prompts}
    given = [f"{key}={value}" for key, value in options.items() if value is not None]
    return [
        *(sys.executable, "-m", "export.proof", *given),
        *(f"--max-prompts={ask.max_prompts}", "--end-with-stdin", "--", *map(str, folders)),
    ]


def _environment() -> dict[str, str]:
    """Our packages are found wherever the parent was started."""
    path = os.pathsep.join(filter(None, [str(_ROOT), os.environ.get("PYTHONPATH")]))
    return {**os.environ, "PYTHONPATH": path, "TOKENIZERS_PARALLELISM": "false"}


def _events(child: subprocess.Popen[bytes]) -> Iterator[dict[str, Any]]:
    """Lines that are no event are a library's, printed to stdout."""
    assert child.stdout is not None
    for line in child.stdout:
        try:
            event = json.loads(line)
        except ValueError:
            continue
        if isinstance(event, dict) and "event" in event:
            yield event


def _as_error(event: dict[str, Any]) -> LoraloopError:
    """The child's error as one of our own, of the nearest class that takes a message alone."""
    kind = getattr(errors, event["error"], LoraloopError)
    if issubclass(kind, InvalidInput) and kind is not errors.InvalidData:
        return InvalidInput(event["message"], param=event["param"])
    found: LoraloopError = kind(event["message"])
    return found


def _last_line(said: IO[bytes]) -> str:
    said.seek(0)
    lines = said.read().decode(errors="replace").strip().splitlines()
    return lines[-1] if lines else "it said nothing (killed, or out of memory?)"
