"""``loraloop export verify DIR…``: proofs made anew, a line about each."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from pathlib import Path

import typer

from artifacts.errors import Corrupt
from artifacts.exported.record import ExportRecord, check_files, read_record
from artifacts.manifest import CARD_FILE
from artifacts.safe_write import write_bytes
from artifacts.storage import storage_errors
from export.card import export_card
from export.cli import progress_bar
from export.proof.process import ProofAsk, prove_in_fresh_process
from export.proof.report import Proof

_COLUMNS = (
    # (heading, figure, format)
    ("logit diff", "max_logit_diff", ".1e"),
    ("KL/token", "decode_kl", ".1e"),
    ("greedy", "greedy_agreement", ".2%"),
    ("perplexity", "perplexity_change_percent", "+.2f"),
    ("tokens/s", "tokens_per_s_1", ".0f"),
)


def verify_and_tell(folders: Sequence[Path], ask: ProofAsk) -> int:
    """Exit code 1 where an export fails or its bytes have changed; ``proof.json`` and card follow.

    Raises LoraloopError for what cannot be examined at all.
    """
    found = [folder.expanduser().resolve() for folder in folders]
    records = {folder: read_record(folder) for folder in found}
    changed = {folder: why for folder in found if (why := _change(folder, records[folder]))}
    whole = sorted((f for f in found if f not in changed), key=lambda f: _identity(records[f]))
    proofs: dict[Path, Proof] = {}
    with progress_bar() as progress:
        for _, group in groupby(whole, lambda folder: _identity(records[folder])):
            same = list(group)
            proofs |= zip(same, prove_in_fresh_process(same, ask, progress), strict=True)
    for folder, proof in proofs.items():
        _write_card(folder, records[folder], proof)
    _tell_table(proofs)
    for folder in found:
        for failure in [changed[folder]] if folder in changed else proofs[folder].failures:
            typer.echo(f"error: {folder}: {failure}", err=True)
    return 1 if changed or not all(proof.passed for proof in proofs.values()) else 0


def _change(folder: Path, record: ExportRecord) -> str | None:
    try:
        check_files(folder, record)
    except Corrupt as error:
        return str(error)
    return None


def _identity(record: ExportRecord) -> tuple[str, str]:
    """What the exports of one process share."""
    return record.adapter_hash, record.base_fingerprint


def _write_card(folder: Path, record: ExportRecord, proof: Proof) -> None:
    card = folder / CARD_FILE
    own = card.read_text(encoding="utf-8") if card.is_file() else None
    with storage_errors(card):
        write_bytes(card, export_card(record, proof, own).encode())


def _tell_table(proofs: dict[Path, Proof]) -> None:
    """Plain columns, so that other programs can cut them."""
    rows = [["format", "verdict", *(heading for heading, _, _ in _COLUMNS), "folder"]]
    for folder, proof in proofs.items():
        facts = {**proof.figures, **proof.measured}
        cells = [
            format(facts[name], shape) if name in facts else "-" for _, name, shape in _COLUMNS
        ]
        rows.append([proof.format, "passed" if proof.passed else "FAILED", *cells, str(folder)])
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    for row in rows if proofs else []:
        line = "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        typer.echo(line.rstrip())
