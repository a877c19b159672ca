"""Runs a proof in a process of its own, on the files on disk. No torch.

A fresh process has nothing of the exporter's memory: what it loads is what lies on the disk. It
speaks JSON lines on stdout, and ends when its stdin does, which is when its parent is gone. What a
library does to it there, it cannot do to us.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from artifacts import errors
from artifacts.errors import InvalidInput, LoraloopError
from export.proof.report import Proof, write_proof

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

    A form that ends the process, as a library's crash does, has failed its proof; a new process
    goes on with the others. Raises what the child raised (InvalidInput, InvalidData, NotFound,
    Corrupt, StorageError), and LoraloopError with its last words where it crashed without a form.
    """
    proofs: dict[Path, Proof] = {}
    while waiting := [folder for folder in folders if folder not in proofs]:
        found = _Found()
        crash = _run_child(waiting, ask, on_progress, found)
        proofs |= found.proofs
        if found.in_work is not None:
            folder, proof = found.in_work
            failure = f"the process that computed it ended with {crash}; try another form"
            proofs[folder] = proof.model_copy(update={"failures": (failure,)})
            write_proof(folder, proofs[folder])
        elif not found.proofs.keys() >= set(waiting):
            raise LoraloopError(f"the proof of {_names(waiting, proofs)} ended with {crash}")
    return [proofs[folder] for folder in folders]


@dataclass(slots=True)
class _Found:
    """What one child has said: proofs, and the form that it is at."""

    proofs: dict[Path, Proof] = field(default_factory=dict)
    in_work: tuple[Path, Proof] | None = None


def _run_child(
    folders: Sequence[Path], ask: ProofAsk, on_progress: OnProgress, found: _Found
) -> str:
    """Fills ``found``; returns how the process ended, in words."""
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
                if event["event"] == "failed":
                    raise _as_error(event)
                if event["event"] == "progress":
                    on_progress(event["done"], event["total"], event["what"])
                    continue
                folder, proof = Path(event["folder"]), Proof.model_validate(event["proof"])
                if event["event"] == "begun":
                    found.in_work = folder, proof
                else:
                    found.proofs[folder], found.in_work = proof, None
            return f"{_ending(child.wait())}: {_last_line(said)}"
        finally:
            child.kill()
            child.communicate()


def _ending(exit_code: int) -> str:
    if exit_code >= 0:
        return f"exit code {exit_code}"
    try:
        name = signal.Signals(-exit_code).name
    except ValueError:
        name = f"signal {-exit_code}"
    return f"{name} (out of memory?)" if -exit_code == signal.SIGKILL else name


def _names(waiting: Sequence[Path], proofs: Mapping[Path, Proof]) -> str:
    return ", ".join(str(folder) for folder in waiting if folder not in proofs)


def _command(folders: Sequence[Path], ask: ProofAsk) -> list[str]:
    options = {"--model": ask.base, "--adapter": ask.adapter, "--prompts": ask.prompts}
    given = [f"{key}={value}" for key, value in options.items() if value is not None]
    return [
        *(sys.executable, "-m", "export.proof", *given),
        *(f"--max-prompts={ask.max_prompts}", "--end-with-stdin", "--", *map(str, folders)),
    ]


def _environment() -> dict[str, str]:
    """Our packages are found wherever the parent was started; last words are no warning."""
    path = os.pathsep.join(filter(None, [str(_ROOT), os.environ.get("PYTHONPATH")]))
    quiet = {"TOKENIZERS_PARALLELISM": "false", "PYTHONWARNINGS": "ignore"}
    return {**os.environ, **quiet, "PYTHONPATH": path}


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
    return lines[-1] if lines else "it said nothing"
