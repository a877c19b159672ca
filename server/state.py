"""What one server process holds, and what the HTTP layer needs of the engine. No logic.

``Server`` is built once by ``server.main`` (or by a test) and handed to ``create_app``; there is
no module-level instance. ``Engine`` and ``AnswerStream`` are what routes rely on: the real ones
live in ``server/engine`` and need torch, the tests' ones do not.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Protocol

from server.answers.admission import Admission
from server.answers.grammars.compiler import GrammarCompiler
from server.answers.reasoning import ThoughtMarks, find_marks
from server.answers.token_text import TokenText
from server.answers.tools.formats import ToolFormat, find_format
from server.engine.request import Delta, EngineStats, GenerationRequest
from server.live_catalog import LiveCatalog
from server.reporting.memory import MemoryMeter
from server.settings import Settings
from server.trouble import Trouble

if TYPE_CHECKING:
    from artifacts.adapter import LoraWeights
    from artifacts.base import Base
    from artifacts.chat import ChatRenderer
    from artifacts.database import Database
    from artifacts.home import Home
    from artifacts.registry import AdapterVersion, Registry
    from server.adapters import AdapterService
    from server.answers.responses.store import ResponseStore
    from server.audit import AuditLog
    from server.comparison.experiments import Experiments
    from server.comparison.feedback import Feedback
    from server.control import Control
    from server.files import FileStore
    from server.jobs.runner import JobRunner
    from server.reporting.telemetry import Telemetry


class AnswerStream(Protocol):
    """The deltas of one answer; the last one, and only that one, has a finish_reason."""

    def listen(self, listener: Callable[[Delta], None]) -> None:
        """Call ``listener`` with each delta that arrives, at first with those that wait already."""

    def take_ready(self) -> list[Delta]:
        """Deltas that have arrived and were not consumed."""

    def stop(self) -> None:
        """Stop generating if unfinished. May be called twice."""


class Engine(Protocol):
    """What the HTTP layer calls. All of it on the event loop, none of it blocking for long."""

    @property
    def kernels(self) -> str: ...

    @property
    def max_model_len(self) -> int: ...

    @property
    def kv_tokens(self) -> int: ...

    @property
    def max_rank(self) -> int: ...

    @property
    def vocab_size(self) -> int: ...

    def start(self) -> None: ...

    def stop(self) -> None: ...

    def submit(self, request: GenerationRequest) -> AnswerStream: ...

    def abort(self, request_id: str) -> None: ...

    def abort_waiting(self) -> None: ...

    def add_adapter(self, key: str, weights: LoraWeights) -> None: ...

    async def preload_adapter(self, key: str) -> float: ...

    async def remove_adapter(self, key: str, *, wait: bool = True) -> None: ...

    def known_adapters(self) -> set[str]: ...

    def stats(self) -> EngineStats: ...


@dataclass
class Lifecycle:
    """Where the process stands; ``/health/ready`` says it, draining refuses new answers."""

    reason_not_ready: str | None = "starting"
    is_draining: bool = False
    started_at: float = 0.0  # unix seconds, set by the lifespan
    num_answers: int = 0  # accepted and not yet closed
    _idle: asyncio.Event = field(default_factory=asyncio.Event)

    def answer_began(self) -> None:
        self.num_answers += 1
        self._idle.clear()

    def answer_ended(self) -> None:
        self.num_answers -= 1
        if self.num_answers == 0:
            self._idle.set()

    def begin_drain(self) -> None:
        """Take no new answer from here on."""
        self.is_draining = True
        self.reason_not_ready = "draining"

    async def wait_idle(self) -> None:
        """Until no answer runs."""
        if self.num_answers:
            await self._idle.wait()


@dataclass
class Server:
    """Everything that routes share. The fields from ``adapters`` on are set by ``server.main``."""

    settings: Settings
    home: Home
    database: Database
    registry: Registry
    base: Base
    renderer: ChatRenderer
    engine: Engine
    telemetry: Telemetry
    adapters: AdapterService
    experiments: Experiments
    feedback: Feedback
    files: FileStore
    jobs: JobRunner
    audit: AuditLog
    responses: ResponseStore
    preload: list[AdapterVersion] = field(default_factory=list)  # loaded at start
    control: Control | None = None  # starts and stops the services above; None in tests
    lifecycle: Lifecycle = field(default_factory=Lifecycle)
    admission: Admission = field(init=False)
    memory: MemoryMeter = field(default_factory=MemoryMeter)
    catalog: LiveCatalog = field(init=False)  # the registry, for whoever must not wait for a disk

    def __post_init__(self) -> None:
        self.catalog = LiveCatalog(self.registry)
        self.admission = Admission.of(self.settings)

    @property
    def troubles(self) -> dict[str, Trouble]:
        """What may fail while answers go on, by the part of the server that would suffer."""
        return {
            "registry": self.catalog.trouble,
            "answers": self.feedback.trouble,
            "audit": self.audit.trouble,
            "responses": self.responses.trouble,
            "response_journal": self.responses.journal_trouble,
            "jobs": self.jobs.trouble,
        }

    @cached_property
    def longest_token(self) -> int:
        """Characters of the longest vocabulary entry; slow the first time on large ones."""
        return max(map(len, self.base.tokenizer.get_vocab()))

    @cached_property
    def token_text(self) -> TokenText:
        """Made when the first request asks for logprobs."""
        return TokenText(self.base.tokenizer)

    @cached_property
    def grammars(self) -> GrammarCompiler:
        """What holds answers to a form."""
        eos = self.base.eos_token_ids
        return GrammarCompiler(self.base.tokenizer, self.engine.vocab_size, eos)

    @cached_property
    def tool_format(self) -> ToolFormat | None:
        """How the base writes calls of functions; None if in no form that is known here."""
        return find_format(self.renderer)

    @cached_property
    def thought_marks(self) -> ThoughtMarks | None:
        """What begins and ends the base's thoughts; None if it has none."""
        return find_marks(self.base.tokenizer, self.base.eos_token_ids)
