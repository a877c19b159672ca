"""``python -m export.proof DIR…``: the proofs of exports that share adapter and base.

Events are JSON lines on stdout: progress, begun, proof, failed. Exit code 0 says that all were
examined, whether they passed or not.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import sys
import threading
from pathlib import Path
from typing import Any

from artifacts.errors import LoraloopError
from export.proof.process import MAX_PROMPTS, ProofAsk
from export.proof.report import Proof


def main() -> int:
    asked = _arguments()
    if asked.end_with_stdin:
        threading.Thread(target=_end_with_stdin, daemon=True).start()
    ask = ProofAsk(asked.model, asked.adapter, asked.prompts, asked.max_prompts)
    try:
        from export.proof.run import prove_all

        gc.freeze()  # libraries: each candidate's end need not look through them again
        prove_all(asked.folders, ask, _on_progress, _on_proof, _on_begun)
    except LoraloopError as error:
        param = getattr(error, "param", None)
        _say("failed", error=type(error).__name__, message=str(error), param=param)
        return 1
    return 0


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m export.proof", description=__doc__)
    parser.add_argument("folders", type=Path, nargs="+")
    parser.add_argument("--model", help="the base; default: as the export's record says")
    parser.add_argument("--adapter", help="default: as the export's record says")
    parser.add_argument("--prompts", type=Path, help="JSONL or text instead of held-out rows")
    parser.add_argument("--max-prompts", type=int, default=MAX_PROMPTS)
    parser.add_argument("--end-with-stdin", action="store_true")
    return parser.parse_args()


def _on_progress(done: int, total: int, what: str) -> None:
    _say("progress", done=done, total=total, what=what)


def _on_proof(folder: Path, proof: Proof) -> None:
    _say("proof", folder=str(folder), proof=proof.model_dump(mode="json"))


def _on_begun(folder: Path, proof: Proof) -> None:
    _say("begun", folder=str(folder), proof=proof.model_dump(mode="json"))


def _say(event: str, **facts: Any) -> None:
    print(json.dumps({"event": event, **facts}, ensure_ascii=False), flush=True)


def _end_with_stdin() -> None:
    """Whoever started us holds the other end; it closes when that process dies, however it does.

    Not through ``sys.stdin``, whose lock this thread would hold when the interpreter ends.
    """
    while os.read(0, 1):
        pass
    os._exit(1)


if __name__ == "__main__":
    sys.exit(main())
