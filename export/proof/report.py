"""What a proof found: ``proof.json``, and the part of the card that shows it. No torch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from artifacts.errors import Corrupt
from artifacts.exported.record import PROOF_FILE
from artifacts.safe_write import write_json


class Prompts(BaseModel):
    """What was asked, and where it came from."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    source: str  # "held-out rows of support@3", "given: FILE", "built in: no held-out rows kept"
    count: int
    sha256: str  # of the token ids


class Proof(BaseModel):
    """Figures of one export beside its reference: base + adapter in transformers and PEFT, float32.

    ``figures`` and ``tolerances`` share their names; a name without a tolerance only informs.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    format: str
    adapter_hash: str
    base_fingerprint: str
    prompts: Prompts
    decode_steps: int
    figures: dict[str, float]
    tolerances: dict[str, float]
    failures: tuple[str, ...]  # sentences with value and tolerance; empty: it passed
    is_allowed: bool = False  # failed, and kept all the same by --allow-unverified
    measured: dict[str, float]  # size_bytes, load_s, ttft_p50_s, ttft_p90_s, tokens_per_s, …
    versions: dict[str, str]
    created_at: str  # ISO 8601, UTC

    @property
    def passed(self) -> bool:
        return not self.failures


def write_proof(folder: Path, proof: Proof) -> None:
    write_json(folder / PROOF_FILE, proof.model_dump(mode="json"))


def read_proof(folder: Path) -> Proof | None:
    """None where there is none. Raises Corrupt."""
    path = folder / PROOF_FILE
    if not path.is_file():
        return None
    try:
        return Proof.model_validate_json(path.read_bytes())
    except (ValidationError, OSError) as error:
        raise Corrupt(
            f"{path} is no readable proof ({type(error).__name__}); run `loraloop export verify`"
        ) from error


def facts(proof: Proof) -> dict[str, Any]:
    """In the order in which people want to read them."""
    return {**proof.figures, **proof.measured}


def proof_section(proof: Proof) -> str:
    """Markdown for the card."""
    rows = "\n".join(f"| {key} | {value:.4g} |" for key, value in facts(proof).items())
    verdict = "passed" if proof.passed else f"FAILED: {'; '.join(proof.failures)}"
    return f"{verdict}\n\n| figure | value |\n|---|---|\n{rows}"
