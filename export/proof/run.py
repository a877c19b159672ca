"""The proofs of several exports of one adapter on one base: first the reference, then each."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from importlib.util import find_spec
from itertools import groupby
from pathlib import Path

from artifacts.errors import InvalidInput, NotFound
from artifacts.exported.formats import Format
from artifacts.exported.record import ExportRecord, check_files, read_record
from export.merge_costs import merge_costs
from export.proof.logits_file import LogitsFile
from export.proof.process import OnProgress, ProofAsk
from export.proof.prompts import BATCH_SIZE, find_questions
from export.proof.prove import Reference, begun, prove
from export.proof.reference import (
    answer_all,
    check_memory,
    load_reference,
    num_vectors,
    read_all,
)
from export.proof.report import Proof, write_proof
from export.source import MergeChoice, Source, open_source

OnProof = Callable[[Path, Proof], None]


def prove_all(
    folders: Sequence[Path],
    ask: ProofAsk,
    on_progress: OnProgress,
    on_proof: OnProof,
    on_begun: OnProof = lambda *_: None,
) -> None:
    """Each folder gets its ``proof.json``, passed or not, as soon as it is known.

    ``on_begun`` is told what is known when a form's turn comes, for it may end this process.

    Raises InvalidInput, InvalidData, NotFound, Corrupt and StorageError.
    """
    records = {folder: read_record(folder) for folder in folders}
    for folder, record in records.items():
        check_files(folder, record, is_hashed=False)
    by_merge = sorted(folders, key=lambda folder: _merge_of(records[folder]))
    groups = [(m, list(g)) for m, g in groupby(by_merge, lambda f: _merge_of(records[f]))]
    clock = _Clock(on_progress)
    with ExitStack() as stack:

        def file_in(vocab_size: int, num_vectors: int) -> LogitsFile:
            return stack.enter_context(LogitsFile(folders[0].parent, vocab_size, num_vectors))

        costs: dict[str, float] = {}
        for merge, group in groups:
            reference = _reference([records[f] for f in group], ask, merge, file_in, clock)
            clock.expect(len(group) * (1 + len(reference.adapted)))
            costs = costs or _merge_costs(reference)
            for folder in group:
                on_begun(folder, begun(folder, records[folder], reference))
                proof = prove(folder, records[folder], reference, clock.tell)
                if records[folder].merge != "none":
                    proof = proof.model_copy(update={"figures": proof.figures | costs})
                write_proof(folder, proof)
                on_proof(folder, proof)


def check_before(source: Source, ask: ProofAsk, forms: Sequence[Format]) -> int:
    """Bytes that the proofs of exports in these forms will keep on the disk for a while.

    Raises now what would end them before the first is examined: InvalidInput, InvalidData, NotFound
    and Corrupt for prompts that cannot be used, InvalidInput for too little memory.
    """
    questions = find_questions(source, ask.prompts, ask.max_prompts)
    check_memory(source)
    by_merge = {source.merge if form.is_merged else "original" for form in forms}
    plain = ["onnx-adapters" in {form.name for form in forms}, *[False] * (len(by_merge) - 1)]
    num = sum(num_vectors(questions, has_plain=has_plain) for has_plain in plain)
    return 4 * int(source.base.config.vocab_size) * num


def _merge_costs(reference: Reference) -> dict[str, float]:
    """Of either way to merge what was trained on a quantised base, whichever was taken."""
    if reference.source.quantization == "none" or find_spec("bitsandbytes") is None:
        return {}
    found = merge_costs(reference.source, reference.questions.rows)
    return {f"merge_kl_{merge}": cost for merge, cost in found.items()}


class _Clock:
    """Work done and expected, in batches."""

    def __init__(self, on_progress: OnProgress) -> None:
        self._on_progress = on_progress
        self._done = self._total = 0

    def expect(self, count: int) -> None:
        self._total += count

    def tell(self, what: str) -> None:
        self._done += 1
        self._total = max(self._total, self._done)
        self._on_progress(self._done, self._total, what)


def _merge_of(record: ExportRecord) -> MergeChoice:
    return "dequantized" if record.merge == "dequantized" else "original"


def _reference(
    records: Sequence[ExportRecord],
    ask: ProofAsk,
    merge: MergeChoice,
    file_in: Callable[[int, int], LogitsFile],
    clock: _Clock,
) -> Reference:
    """Base and adapter found, checked, loaded, asked, and dropped again."""
    source = _source(records[0], ask, merge)
    for each in records:
        _check_identity(each, source)
    questions = find_questions(source, ask.prompts, ask.max_prompts)
    check_memory(source)
    has_plain = any(each.format == "onnx-adapters" for each in records)
    clock.expect(2 * -(-len(questions.rows) // BATCH_SIZE))
    model = load_reference(source)
    ends = source.base.eos_token_ids
    file = file_in(source.base.config.vocab_size, num_vectors(questions, has_plain=has_plain))
    tell = clock.tell
    adapted = answer_all(model, questions, ends, file, tell)
    with model.disable_adapter():
        plain = answer_all(model, questions, ends, file, tell) if has_plain else []
        firsts = [answers.first for answers in plain] or read_all(model, questions, file, tell)
    return Reference(source, questions, file, adapted, plain, firsts)


def _source(record: ExportRecord, ask: ProofAsk, merge: MergeChoice) -> Source:
    """As asked for, or else as the record says, which holds on the machine that exported."""
    try:
        return open_source(
            ask.adapter or record.adapter_source, ask.base or record.base_source, merge
        )
    except NotFound as error:
        if ask.adapter is not None and ask.base is not None:
            raise
        raise NotFound(
            f"{error}; the export was made of {record.adapter_id} and {record.base_id}: say where "
            "they are with --adapter and --model"
        ) from error


def _check_identity(record: ExportRecord, source: Source) -> None:
    if source.base.fingerprint != record.base_fingerprint:
        raise InvalidInput(
            f"{source.base.path} has the fingerprint {source.base.fingerprint[:16]}…, the export "
            f"was made from {record.base_id} with {record.base_fingerprint[:16]}…; give that base "
            "with --model",
            param="model",
        )
    if source.weights.content_hash != record.adapter_hash:
        raise InvalidInput(
            f"the adapter {source.folder} has the hash {source.weights.content_hash[:16]}…, the "
            f"export was made from {record.adapter_id} with {record.adapter_hash[:16]}…; give that "
            "one with --adapter",
            param="adapter",
        )
