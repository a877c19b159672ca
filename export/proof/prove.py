"""One export beside its reference: opened, measured, compared, judged."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from artifacts.base import open_tokenizer
from artifacts.errors import AdapterRejected, Corrupt, NotFound
from artifacts.exported.graph import AdapterInputs, ExportedModel
from artifacts.exported.record import ExportRecord
from export.proof.candidate import open_candidate, packed_adapter
from export.proof.compare import Comparison
from export.proof.logits_file import LogitsFile
from export.proof.measure import PeakMemory, measure, measure_load, sizes
from export.proof.prompts import DECODE_STEPS, Questions
from export.proof.reference import Answers, Tell
from export.proof.report import Proof, read_proof
from export.proof.texts import TEXTS
from export.proof.tolerances import judge, tolerances_of
from export.source import Source

_LIBRARIES = ("torch", "transformers", "peft", "onnxruntime", "bitsandbytes", "gguf")


@dataclass(frozen=True, slots=True)
class Reference:
    """``plain``: the base without the adapter, where an export can be run without it too.

    ``base_first``: of each batch, where the logits of its rows by the base alone begin.
    """

    source: Source
    questions: Questions
    file: LogitsFile
    adapted: list[Answers]
    plain: list[Answers]
    base_first: Sequence[Sequence[int]] = ()


@dataclass(slots=True)
class _Found:
    figures: dict[str, float] = field(default_factory=dict)
    measured: dict[str, float] = field(default_factory=dict)
    tolerances: dict[str, float] = field(default_factory=dict)
    failures: list[str] = field(default_factory=list)


def prove(folder: Path, record: ExportRecord, reference: Reference, tell: Tell) -> Proof:
    """Raises InvalidInput where this machine cannot run the form."""

    def tell_form(what: str) -> None:
        tell(f"{record.format}: {what}")

    proof = begun(folder, record, reference)
    found = _Found(measured=proof.measured)
    try:
        _examine(folder, record, reference, found, tell_form)
    except (Corrupt, AdapterRejected) as error:
        found.failures.append(f"it cannot be opened: {error}")
    return proof.model_copy(
        update={
            "figures": found.figures,
            "tolerances": found.tolerances,
            "failures": tuple(found.failures),
            "is_allowed": bool(found.failures) and proof.is_allowed,
            "measured": found.measured,
        }
    )


def begun(folder: Path, record: ExportRecord, reference: Reference) -> Proof:
    """What is known before the form is opened: nothing was compared yet."""
    return Proof(
        format=record.format,
        adapter_hash=record.adapter_hash,
        base_fingerprint=record.base_fingerprint,
        prompts=reference.questions.facts,
        decode_steps=DECODE_STEPS,
        figures={},
        tolerances={},
        failures=(),
        is_allowed=_was_allowed(folder),
        measured=sizes(folder),
        versions=_versions(),
        created_at=datetime.now(UTC).isoformat(timespec="seconds"),
    )


def _examine(
    folder: Path, record: ExportRecord, reference: Reference, found: _Found, tell: Tell
) -> None:
    source = reference.source
    memory = PeakMemory()
    model, load = measure_load(lambda: open_candidate(folder, source))
    vocab_size = source.base.config.vocab_size
    if model.shape.vocab_size != vocab_size:
        found.failures.append(
            f"it answers over {model.shape.vocab_size} tokens, the adapter over {vocab_size}: it "
            "was made from another model"
        )
        return
    adapter = packed_adapter(model, folder)
    prompts = [prompt for answers in reference.adapted for prompt in answers.prompts]
    found.measured |= load | measure(model, prompts, adapter=adapter)
    found.measured["peak_memory_bytes"] = float(memory.so_far())
    tell("measured")
    found.figures = compare(model, reference, adapter, tell)
    if record.format != "adapter":  # which has none of its own
        found.figures |= _tokenizer_figures(folder, source)
    found.tolerances, found.failures = judged(record.format, source, found.figures)


def compare(
    model: ExportedModel, reference: Reference, adapter: AdapterInputs | None, tell: Tell
) -> dict[str, float]:
    """With its adapter, and, as ``base_…``, without where it takes any."""
    comparison = Comparison(model, reference.file, adapter, reference.base_first)
    figures = comparison.run(reference.adapted, tell)
    if model.takes_adapters:
        plain = Comparison(model, reference.file).run(reference.plain, lambda _: None)
        figures |= {f"base_{key}": value for key, value in plain.items()}
    return figures


def judged(
    form: str, source: Source, figures: Mapping[str, float]
) -> tuple[dict[str, float], list[str]]:
    """The tolerances that hold for ``figures``, and a sentence for each that is not kept."""
    rules = tolerances_of(form, str(source.base.config.dtype).removeprefix("torch."))
    plain = {key.removeprefix("base_"): figures[key] for key in figures if key.startswith("base_")}
    failures = judge(form, figures, rules)
    failures += [f"without an adapter {each}" for each in judge(form, plain, rules)]
    tolerances = {
        prefix + rule.figure: rule.limit
        for prefix, some in (("", figures), ("base_", plain))
        for rule in rules
        if rule.figure in some
    }
    return tolerances, failures


def _tokenizer_figures(folder: Path, source: Source) -> dict[str, float]:
    """Raises Corrupt where the folder has no usable tokenizer."""
    try:
        own, base = open_tokenizer(folder), source.base.tokenizer
    except NotFound as error:
        raise Corrupt(str(error)) from error
    differ = [text for text in TEXTS if own(text)["input_ids"] != base(text)["input_ids"]]
    return {"num_texts_tokenized_otherwise": float(len(differ))}


def _was_allowed(folder: Path) -> bool:
    """Whether somebody had kept it all the same when it was proven before."""
    try:
        before = read_proof(folder)
    except Corrupt:
        return False
    return before is not None and before.is_allowed


def _versions() -> dict[str, str]:
    found = {}
    for name in _LIBRARIES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found
