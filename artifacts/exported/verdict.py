"""What an export's own proof says of it, in one word. Import is cheap: no torch."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from artifacts.errors import Corrupt
from artifacts.exported.record import PROOF_FILE, ExportRecord

# "missing": nobody has proven it, or not this one; "failed": it was kept all the same.
Verdict = Literal["passed", "failed", "missing"]


class _Proof(BaseModel):
    """The part of ``proof.json`` that decides."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    format: str
    adapter_hash: str
    base_fingerprint: str
    failures: tuple[str, ...]


def read_verdict(folder: Path, record: ExportRecord) -> Verdict:
    """Raises Corrupt for a proof that cannot be read."""
    path = folder / PROOF_FILE
    if not path.is_file():
        return "missing"
    try:
        proof = _Proof.model_validate_json(path.read_bytes())
    except (ValidationError, OSError) as error:
        raise Corrupt(
            f"{path} is no readable proof ({type(error).__name__}); run `loraloop export verify "
            f"{folder}`"
        ) from error
    proven = (proof.format, proof.adapter_hash, proof.base_fingerprint)
    if proven != (record.format, record.adapter_hash, record.base_fingerprint):
        return "missing"
    return "failed" if proof.failures else "passed"
