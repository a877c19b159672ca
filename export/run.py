"""One command: an adapter in one form or several, each written aside, proven, and only then named.

Whatever fails, nothing half-written has an output's name: all work is done in a folder beside the
output that goes with the command, or, after a kill, with the next one.
"""

from __future__ import annotations

import errno
import shutil
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Literal

from artifacts.errors import Conflict, Corrupt, InvalidInput, LoraloopError, StorageFull
from artifacts.exported.formats import FORMATS
from artifacts.exported.record import (
    RECORD_FILE,
    ExportRecord,
    check_files,
    export_fingerprint,
    file_entries,
    is_export,
    read_record,
)
from artifacts.manifest import CARD_FILE
from artifacts.models import copy_without_weights
from artifacts.safe_write import publish_folder, write_bytes, write_json
from artifacts.scratch import clear_scratch, scratch_folder
from artifacts.storage import storage_errors
from export.card import export_card
from export.forms.catalogue import form_of
from export.forms.form import Form, Options, Progress, Workshop, options_of
from export.proof.process import ProofAsk, prove_in_fresh_process
from export.proof.report import Proof, read_proof, write_proof
from export.source import MergeChoice, Source, open_source

MB = 10**6
_NO_PLACE = {errno.ENOTDIR, errno.EEXIST, errno.ENOENT, errno.ENAMETOOLONG, errno.ELOOP}
LIBRARIES = ("torch", "transformers", "peft", "onnx", "onnxruntime", "bitsandbytes", "gguf")


@dataclass(frozen=True, slots=True)
class Asked:
    """What to export: ``adapter`` is ``name@version`` or a PEFT folder, ``base`` as for serving."""

    adapter: str
    output: Path  # one format: the folder itself; several: a folder each below it
    formats: tuple[str, ...] = ("merged",)
    base: str | None = None
    merge: MergeChoice | None = None
    options: dict[str, Any] = field(default_factory=dict)  # fields of `Options` that were given
    prompts: Path | None = None
    is_verified: bool = True
    allow_unverified: bool = False


@dataclass(frozen=True, slots=True)
class Exported:
    """What became of one format. "refused": its proof failed, and nothing of it was kept."""

    format: str
    folder: Path
    state: Literal["written", "unchanged", "refused"]
    proof: Proof | None  # None: not verified


@dataclass(frozen=True, slots=True)
class _Job:
    name: str
    form: Form
    output: Path
    options: Options

    @property
    def asked(self) -> dict[str, Any]:
        return {key: getattr(self.options, key) for key in sorted(self.form.options)}


def export_forms(asked: Asked, progress: Progress) -> list[Exported]:
    """Writes what is not there yet, in the order of ``asked.formats``.

    Raises NotFound, InvalidInput, InvalidData for prompts that cannot be used, AdapterRejected for
    another base or template, Conflict for an output that is something else, Corrupt and
    StorageError; then there is no new output.
    """
    jobs = _jobs(asked)
    source = open_source(asked.adapter, asked.base, asked.merge)
    for job in jobs:
        job.form.check(source, job.options)
    waiting = [job for job in jobs if not _is_there(job, source)]
    done: dict[str, Exported] = {}
    if waiting:
        done = {found.format: found for found in _make(waiting, source, asked, progress)}
    for job in jobs:
        if job.name not in done:
            done[job.name] = _kept(job, asked, progress)
    return [done[job.name] for job in jobs]


def _jobs(asked: Asked) -> list[_Job]:
    """Raises InvalidInput for unknown and doubled formats, and for what none of them uses."""
    if len(set(asked.formats)) != len(asked.formats):
        raise InvalidInput(f"a format is named twice: {', '.join(asked.formats)}", param="format")
    forms = {name: form_of(name) for name in asked.formats}
    options = options_of(asked.options)
    for key in asked.options:
        if not any(key in form.options for form in forms.values()):
            raise InvalidInput(
                f"--{key.replace('_', '-')} means nothing to {', '.join(forms)}; leave it out",
                param=key,
            )
    if asked.merge is not None and not any(FORMATS[name].is_merged for name in forms):
        raise InvalidInput(
            f"--merge means nothing to {', '.join(forms)}, where the adapter stays beside its "
            "base; leave it out",
            param="merge",
        )
    if asked.prompts is not None and not asked.is_verified:
        raise InvalidInput("--prompts are for the proof; leave out --no-verify", param="prompts")
    output = asked.output.expanduser().resolve()
    is_single = len(forms) == 1
    return [
        _Job(name, form, output if is_single else output / name, options)
        for name, form in forms.items()
    ]


def _is_there(job: _Job, source: Source) -> bool:
    """Whether the output is this very export already. Raises Conflict for anything else in it."""
    output = job.output
    with storage_errors(output), _usable(output):
        if not output.exists() or (output.is_dir() and not any(output.iterdir())):
            return False
    if not is_export(output):
        raise Conflict(f"{output} exists already; remove it or choose another output")
    found = read_record(output)
    wanted = _record(job, source, settings={}, folder=None)
    if not found.is_same_work(wanted):
        raise Conflict(
            f"{output} holds {found.adapter_id} as {found.format} ({found.created_at}), which is "
            "something else; remove it or choose another output"
        )
    check_files(output, found)
    return True


def _kept(job: _Job, asked: Asked, progress: Progress) -> Exported:
    """What is there already, proven now if it was not, or not on these prompts."""
    proof = read_proof(job.output)
    if asked.is_verified and (proof is None or asked.prompts is not None):
        [proof] = prove_in_fresh_process([job.output], _ask(asked), progress)
        _settle(job.output, proof, asked)
    if proof is not None and not proof.passed and not asked.allow_unverified:
        raise Corrupt(
            f"{job.output} is there, but its proof failed: {proof.failures[0]}; remove it, or pass "
            "--allow-unverified"
        )
    return Exported(job.name, job.output, "unchanged", proof)


def _make(jobs: Sequence[_Job], source: Source, asked: Asked, progress: Progress) -> list[Exported]:
    output = asked.output.expanduser().resolve()
    prefix = f".{output.name}.part-"
    num_proof_bytes = _check_proof(jobs, source, asked) if asked.is_verified else 0
    with storage_errors(output), ExitStack() as stack:
        with _usable(output):
            output.parent.mkdir(parents=True, exist_ok=True)
            clear_scratch(output.parent, prefix)  # of exports that were killed
            scratch = stack.enter_context(scratch_folder(output.parent, prefix))
        _check_space(jobs, source, scratch, num_proof_bytes)
        workshop = Workshop(source, progress)
        for job in jobs:
            _write(job, workshop, scratch / job.name)
        return _prove_and_publish(jobs, scratch, asked, progress)


@contextmanager
def _usable(output: Path) -> Iterator[None]:
    """Inside, a path that can be no folder's is InvalidInput."""
    try:
        yield
    except OSError as error:
        if error.errno not in _NO_PLACE:
            raise
        raise InvalidInput(
            f"{output} cannot be a folder ({error.strerror}); choose another output",
            param="output",
        ) from error


def _write(job: _Job, workshop: Workshop, folder: Path) -> None:
    folder.mkdir()
    source = workshop.source
    if job.name != "adapter":
        copy_without_weights(source.base, folder)
    with _full_disk(folder, job.form.num_bytes(source, job.options)):
        settings = job.form.write(workshop, job.options, folder)
    record = _record(job, source, settings, folder)
    write_json(folder / RECORD_FILE, record.model_dump(mode="json"))


@contextmanager
def _full_disk(folder: Path, wanted: int) -> Iterator[None]:
    """Each library says in its own way that a disk is full, if at all; so the disk is asked."""
    try:
        yield
    except LoraloopError:
        raise
    except Exception as error:
        if shutil.disk_usage(folder).free >= wanted:
            raise
        raise StorageFull(
            f"{folder.parent} ran out of space ({' '.join(str(error).split())}); free some, or "
            "choose an output on another disk"
        ) from error


def _record(
    job: _Job, source: Source, settings: dict[str, Any], folder: Path | None
) -> ExportRecord:
    files = {} if folder is None else file_entries(folder)
    is_merged = FORMATS[job.name].is_merged
    fingerprint = export_fingerprint(job.name, files) if is_merged else source.base.fingerprint
    return ExportRecord(
        format=job.name,
        adapter_id=source.adapter_id,
        adapter_hash=source.weights.content_hash,
        adapter_source=source.adapter_source,
        base_id=source.base.id,
        base_fingerprint=source.base.fingerprint,
        base_source=source.base_source,
        quantization=source.quantization,
        merge=source.merge if is_merged else "none",
        fingerprint=fingerprint,
        options=job.asked,
        settings=settings,
        versions=_versions(),
        created_at=datetime.now(UTC).isoformat(timespec="seconds"),
        files=files,
    )


def _prove_and_publish(
    jobs: Sequence[_Job], scratch: Path, asked: Asked, progress: Progress
) -> list[Exported]:
    folders = [scratch / job.name for job in jobs]
    proofs: list[Proof | None] = [None] * len(jobs)
    if asked.is_verified:
        proofs = [*prove_in_fresh_process(folders, _ask(asked), progress)]
    done = []
    for job, folder, proof in zip(jobs, folders, proofs, strict=True):
        if proof is not None and not proof.passed and not asked.allow_unverified:
            done.append(Exported(job.name, job.output, "refused", proof))
            continue
        _settle(folder, proof, asked)
        _publish(folder, job.output)
        done.append(Exported(job.name, job.output, "written", proof))
    return done


def _settle(folder: Path, proof: Proof | None, asked: Asked) -> None:
    """Card, and in the proof that somebody wanted a failed one all the same."""
    if proof is not None and not proof.passed and asked.allow_unverified:
        write_proof(folder, proof.model_copy(update={"is_allowed": True}))
        proof = read_proof(folder)
    own = folder / CARD_FILE
    card = own.read_text(encoding="utf-8") if own.is_file() else None
    write_bytes(own, export_card(read_record(folder), proof, card).encode())


def _publish(folder: Path, output: Path) -> None:
    try:
        publish_folder(folder, output)
    except OSError as error:
        if not output.exists():
            raise
        raise Conflict(f"{output} was made by somebody else meanwhile; nothing changed") from error


def _check_proof(jobs: Sequence[_Job], source: Source, asked: Asked) -> int:
    """Bytes on the disk. What would end every proof is no reason to lose hours of work first."""
    from export.proof.run import check_before

    return check_before(source, _ask(asked), [FORMATS[job.name] for job in jobs])


def _check_space(jobs: Sequence[_Job], source: Source, scratch: Path, num_proof_bytes: int) -> None:
    wanted = sum(job.form.num_bytes(source, job.options) for job in jobs) + num_proof_bytes
    free = shutil.disk_usage(scratch).free
    if free < wanted:
        raise StorageFull(
            f"{', '.join(job.name for job in jobs)} take about {wanted / MB:,.0f} MB"
            f"{' with their proof' if num_proof_bytes else ''}, "
            f"{jobs[0].output.parent} has {free / MB:,.0f} MB free; free some, or choose an output "
            "on another disk"
        )


def _ask(asked: Asked) -> ProofAsk:
    return ProofAsk(base=asked.base, adapter=asked.adapter, prompts=asked.prompts)


def _versions() -> dict[str, str]:
    found = {}
    for name in LIBRARIES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found
