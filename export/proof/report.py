"""What a proof found: ``proof.json``, and the part of the card that shows it. No torch."""

from __future__ import annotations

from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from artifacts.errors import Corrupt
from artifacts.exported.record import PROOF_FILE
from artifacts.model_card import table
from artifacts.safe_write import write_json

_UNITS = {"_bytes": "MB", "_s": "s", "_percent": "%"}


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
    measured: dict[str, float]  # size_bytes, load_s, ttft_p50_s, tokens_per_s_8, …
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


def proof_section(proof: Proof) -> str:
    """Markdown for the card: the verdict, the figures with their tolerances, what was measured."""
    rows = [["figure", "found", "tolerance"]]
    for name in sorted(proof.figures, key=lambda name: (name not in proof.tolerances, name)):
        limit = f"{proof.tolerances[name]:g}" if name in proof.tolerances else ""
        rows.append([_words(name), _shown(name, proof.figures[name]), limit])
    taken = sorted(proof.measured.items())
    measured = [["measured", ""], *([_words(name), _shown(name, value)] for name, value in taken)]
    libraries = ", ".join(f"{name} {number}" for name, number in sorted(proof.versions.items()))
    parts = [
        _verdict(proof),
        f"Beside base and adapter in transformers and PEFT, float32, on {proof.prompts.count} "
        f"prompts ({proof.prompts.source}; SHA-256 of their ids `{proof.prompts.sha256[:16]}…`): "
        f"whole rows, and {proof.decode_steps} decode steps each. Made at {proof.created_at} with "
        f"{libraries}.",
        table(rows),
        "On the machine that made the proof, one process, nothing else to do with it:",
        table(measured),
    ]
    return "\n\n".join(parts)


def _verdict(proof: Proof) -> str:
    if proof.passed:
        return "**Passed.** It answers as the adapter does, within the tolerances of its form."
    told = "\n".join(f"- {failure}" for failure in proof.failures)
    kept = " It was kept all the same by `--allow-unverified`." if proof.is_allowed else ""
    return f"**Failed.**{kept}\n\n{told}"


def _words(name: str) -> str:
    if name.startswith("tokens_per_s_"):
        return f"tokens/s at batch {name.rpartition('_')[2]}"
    for unit, word in _UNITS.items():
        if name.endswith(unit):
            return f"{name.removesuffix(unit)} ({word})".replace("_", " ")
    return name.replace("_", " ")


def _shown(name: str, value: float) -> str:
    if name.endswith("_bytes"):
        return f"{value / 1e6:.1f}"
    if value == int(value) and abs(value) < 1e9:
        return f"{value:.0f}"
    return f"{value:.4g}"
