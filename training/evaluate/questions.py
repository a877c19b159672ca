"""A suite's data as prompts, rendered as the server renders them. No torch, no model.

What cannot be asked is found here, before a model is loaded: unusable rows are refused, rows beyond
the base's context are left out and counted.
"""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from artifacts.base import Base
from artifacts.chat import ChatRenderer
from artifacts.errors import InvalidChat, InvalidData
from training.data.examples import Example, RowRenderer, Shape
from training.data.records import Conversation, Record
from training.data.rows import BadRow
from training.data.sources import SourceRows, read_source
from training.errors import InvalidConfig
from training.evaluate.metrics import normalised
from training.evaluate.noise import perturb
from training.evaluate.suite import General, Suite, Task

CLEAN = "clean"  # the questions as they stand; other variants are named by their perturbation
_MAX_LISTED = 20

Prompts = list[list[int]]


@dataclass(frozen=True, slots=True)
class Prepared:
    """One task ready to be asked: ``examples`` for perplexity, else ``prompts`` by variant."""

    name: str
    kind: str
    num_left_out: int
    examples: list[Example] = field(default_factory=list)
    prompts: dict[str, Prompts] = field(default_factory=dict)
    questions: list[str] = field(default_factory=list)  # the last user messages
    references: list[str] = field(default_factory=list)
    labels: tuple[str, ...] = ()
    noisy: list[int] = field(default_factory=list)  # places of the questions asked under noise
    num_changed: dict[str, int] = field(default_factory=dict)  # by perturbation
    max_new_tokens: int = 0

    @property
    def num_rows(self) -> int:
        return len(self.examples) or len(self.references)

    @property
    def num_answers(self) -> int:
        """Examples and prompts, variants included: what progress counts."""
        return len(self.examples) + sum(len(each) for each in self.prompts.values())


@dataclass(frozen=True, slots=True)
class PreparedSuite:
    name: str
    hash: str
    seed: int
    tasks: tuple[Prepared, ...]
    general: Prepared | None
    notes: tuple[str, ...]

    @property
    def all(self) -> tuple[Prepared, ...]:
        return (*self.tasks, self.general) if self.general is not None else self.tasks


@dataclass(frozen=True, slots=True)
class _Question:
    messages: list[dict[str, Any]]
    tools: list[dict[str, Any]] | None
    reference: str
    where: str  # file:line

    @property
    def text(self) -> str:
        return str(self.messages[-1]["content"])


class Preparation:
    """Reads and renders a suite for one base; ``limit`` takes the first rows of every task."""

    def __init__(self, base: Base, seed: int, limit: int | None = None) -> None:
        if base.template_hash is None:
            raise InvalidConfig(f"{base.id} has no chat template to ask questions by", param="base")
        self._base = base
        self._renderer = ChatRenderer(base.tokenizer)
        self._seed = seed
        self._limit = limit
        self._notes: list[str] = []

    def prepare(self, suite: Suite) -> PreparedSuite:
        """Raises InvalidData naming file and line, InvalidConfig naming the task."""
        digest = hashlib.sha256()
        tasks = [self._task(task, digest) for task in suite.tasks]
        general = None if suite.general is None else self._general(suite.general, digest)
        plain = suite.model_dump(mode="json")
        for one in [*plain["tasks"], plain["general"] or {"data": {}}]:
            one["data"].pop("path", None)  # what lies there counts, not where it lies
        digest.update(json.dumps([plain, self._limit], sort_keys=True).encode())
        return PreparedSuite(
            suite.name, digest.hexdigest(), self._seed, tuple(tasks), general, tuple(self._notes)
        )

    def _task(self, task: Task, digest: Any) -> Prepared:
        records = self._records(task, digest)
        if task.kind == "perplexity":
            return self._perplexity(task.name, records)
        questions = [_question(record) for record in records]
        labels = _labels(task, questions) if task.kind == "classification" else ()
        asked = [_with_system(question, task.system, labels) for question in questions]
        return self._asked(task, asked, labels)

    def _general(self, general: General, digest: Any) -> Prepared:
        return self._perplexity("general", self._records(general, digest))

    def _records(self, one: Task | General, digest: Any) -> list[Record]:
        source = read_source(one.data, self._seed)
        digest.update(source.sha256.encode())
        records, bad = _read(source, self._limit)
        _refuse(bad, one.data.path)
        if not records:
            raise InvalidData(f"{one.data.path} holds no row to evaluate on")
        self._notes += source.notes
        return records

    def _perplexity(self, name: str, records: Sequence[Record]) -> Prepared:
        rows = RowRenderer(self._renderer, Shape(max_length=self._base.context_length))
        examples: list[Example] = []
        bad: list[BadRow] = []
        for record in records:
            found = rows.render(record)
            if isinstance(found, BadRow):
                bad.append(found)
            else:
                examples += found
        _refuse(bad, name)
        if not examples:
            raise InvalidData(f"no row of task {name!r} has a reply within the base's context")
        left_out = rows.num_too_long + rows.num_undesirable
        return Prepared(name, "perplexity", left_out, examples=examples)

    def _asked(self, task: Task, questions: list[_Question], labels: tuple[str, ...]) -> Prepared:
        room = self._base.context_length - task.max_new_tokens
        clean = [self._prompt(question) for question in questions]
        fitting = [place for place, prompt in enumerate(clean) if len(prompt) <= room]
        if not fitting:
            raise InvalidConfig(
                f"no question of task {task.name!r} leaves room for max_new_tokens="
                f"{task.max_new_tokens} in the base's {self._base.context_length} tokens"
            )
        questions = [questions[place] for place in fitting]
        prompts = {CLEAN: [clean[place] for place in fitting]}
        num_changed: dict[str, int] = {}
        noise, seed = task.robustness, f"{self._seed}:{task.name}"
        chosen = [] if noise is None else _sample(len(questions), noise.num_samples, seed)
        for kind in noise.perturbations if noise is not None else ():
            assert noise is not None
            some = [questions[place] for place in chosen]
            texts = [perturb(question.text, kind, noise.rate, seed) for question in some]
            pairs = list(zip(some, texts, strict=True))
            num_changed[kind] = sum(question.text != text for question, text in pairs)
            noisy = [self._prompt(_reworded(question, text)) for question, text in pairs]
            prompts[kind] = [prompt[-room:] for prompt in noisy]  # noise may add a token too many
        return Prepared(
            task.name,
            task.kind,
            len(clean) - len(fitting),
            prompts=prompts,
            questions=[question.text for question in questions],
            references=[question.reference for question in questions],
            labels=labels,
            noisy=chosen,
            num_changed=num_changed,
            max_new_tokens=task.max_new_tokens,
        )

    def _prompt(self, question: _Question) -> list[int]:
        try:
            return self._renderer.render_prompt(question.messages, tools=question.tools)
        except InvalidChat as error:
            raise InvalidData(f"{question.where}: {error}") from error


def _read(source: SourceRows, limit: int | None) -> tuple[list[Record], list[BadRow]]:
    records: list[Record] = []
    bad: list[BadRow] = []
    for row in _first(source, limit):
        if isinstance(row, BadRow):
            bad.append(row)
        else:
            records.append(row)
    return records, bad


def _first(source: SourceRows, limit: int | None) -> Iterator[Record | BadRow]:
    for number, row in enumerate(source):
        if limit is not None and number >= limit:
            return
        yield row


def _sample(num_rows: int, wanted: int | None, seed: str) -> list[int]:
    """Places in their order: a file is often sorted by label."""
    if wanted is None or wanted >= num_rows:
        return list(range(num_rows))
    return sorted(random.Random(seed).sample(range(num_rows), wanted))


def _refuse(bad: Sequence[BadRow], what: str) -> None:
    if not bad:
        return
    listed = [f"  {row.file}:{row.line}: {row.reason}" for row in bad[:_MAX_LISTED]]
    head = f"{len(bad)} row(s) of {what} cannot be evaluated on:"
    rows = [(row.file, row.line, row.reason) for row in bad[:_MAX_LISTED]]
    raise InvalidData("\n".join([head, *listed]), rows)


def _question(record: Record) -> _Question:
    """What stands before the last reply, and that reply as the reference."""
    where = f"{record.file}:{record.line}"
    if not isinstance(record, Conversation):
        raise InvalidData(f"{where}: only rows with a question and a reply can be asked")
    if record.is_desirable is False:
        raise InvalidData(f"{where}: a reply that is called undesirable is nothing to compare with")
    *before, reply = record.messages
    reference = reply.get("content")
    if not isinstance(reference, str) or not reference.strip() or reply.get("tool_calls"):
        raise InvalidData(f"{where}: the last reply has no text to compare an answer with")
    if not before or not isinstance(before[-1].get("content"), str):
        raise InvalidData(f"{where}: there is no question in plain text before the reply")
    messages = [{key: m[key] for key in m if key != "weight"} for m in before]
    return _Question(messages, record.tools, reference.strip(), where)


def _labels(task: Task, questions: Sequence[_Question]) -> tuple[str, ...]:
    """Those listed, else those of the data, sorted. They must differ as answers are compared."""
    found = sorted({question.reference for question in questions})
    labels = task.labels if task.labels is not None else tuple(found)
    known: dict[str, str] = {}
    for label in labels:
        if (other := known.setdefault(normalised(label), label)) != label:
            raise InvalidConfig(f"task {task.name!r}: labels {other!r} and {label!r} read the same")
    for label in found:
        if normalised(label) not in known:
            raise InvalidConfig(f"task {task.name!r}: the data's label {label!r} is not in labels")
    return labels


def _with_system(question: _Question, system: str | None, labels: Sequence[str]) -> _Question:
    if system is None:
        return question
    told = {"role": "system", "content": system.replace("{labels}", ", ".join(labels))}
    others = [message for message in question.messages if message["role"] != "system"]
    return replace(question, messages=[told, *others])


def _reworded(question: _Question, text: str) -> _Question:
    *before, last = question.messages
    return replace(question, messages=[*before, {**last, "content": text}])
