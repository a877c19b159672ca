"""Who may come in: counted before anything is paid for a request. Knows no prompt and no route.

The queue is bounded by answers and by prompt tokens that still have to be read. Where there are
several keys, the last eighth of both is kept for those that hold less than their share, so that
nobody finds the house full of one other's requests.
"""

from __future__ import annotations

import logging
import math
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

from server.auth import key_id_of
from server.engine.errors import EngineOverloaded
from server.engine.request import Share
from server.errors import ApiError
from server.settings import Settings

log = logging.getLogger("loraloop.server")

NO_KEY = "none"  # what callers without a key count as, together
CHARACTERS_PER_TOKEN = 4  # a guess that stands until the prompt is tokenised
KEPT_PART = 8  # one in so many places is for keys below their share
MAX_RETRY_AFTER_S = 60.0
NUM_ENDS = 32  # latest ends of answers, for the rate at which places become free
LOG_EVERY_S = 10.0


@dataclass(slots=True)
class Ticket:
    """What one request has of the queue, from before its prompt is read to its answer's end."""

    share: Share
    num_answers: int = 0
    num_tokens: int = 0  # of its prompts that wait to be read
    _admission: Admission | None = None

    def claim(self, adapter: str | None, num_answers: int, num_characters: int) -> None:
        """Take places for prompts of that length, before they are tokenised.

        Args:
            adapter: the name of the one that is to answer.

        Raises:
            EngineOverloaded: not now.
            ApiError: the key has as many answers as it may have at once.
        """
        assert self._admission is not None
        weight = self._admission.adapter_weights.get(adapter or "", 1.0)
        self.share = replace(self.share, adapter_weight=weight)
        self._admission.claim(self, num_answers, num_characters // CHARACTERS_PER_TOKEN)

    def settle(self, num_tokens: int) -> None:
        """Now that the prompts are tokenised. Raises EngineOverloaded."""
        assert self._admission is not None
        self._admission.settle(self, num_tokens)

    def begin(self) -> None:
        """The prompts have been read: the first token is there."""
        if self._admission is not None and self.num_tokens:
            self._admission.settle(self, 0)

    def leave(self) -> None:
        """Give everything back. May be called twice."""
        if self._admission is not None:
            self._admission.leave(self)
            self._admission = None


@dataclass(slots=True)
class Held:
    """What one key's tickets hold together."""

    answers: int = 0
    tokens: int = 0


@dataclass
class Admission:
    """All tickets of one server. Everything is called on the event loop."""

    max_answers: int
    max_tokens: int
    max_answers_per_key: int | None = None
    key_weights: Mapping[str, float] = field(default_factory=dict)  # by key id; all keys there are
    adapter_weights: Mapping[str, float] = field(default_factory=dict)  # by name
    clock: Callable[[], float] = time.monotonic

    def __post_init__(self) -> None:
        self.rejected: Counter[str] = Counter()  # by reason
        self._held: dict[str, Held] = {}
        self._ends: deque[float] = deque(maxlen=NUM_ENDS)
        self._logged_at = -math.inf

    @classmethod
    def of(cls, settings: Settings) -> Admission:
        keys = (*settings.api_keys, *settings.admin_keys)
        given = {key_id_of(key): weight for key, weight in settings.key_weights.items()}
        return cls(
            max_answers=settings.max_num_seqs + settings.max_queue,
            max_tokens=settings.max_queue_tokens,
            max_answers_per_key=settings.max_answers_per_key,
            key_weights={key_id_of(key): 1.0 for key in keys} | given,
            adapter_weights=settings.adapter_weights,
        )

    @contextmanager
    def ticket(self, key_id: str | None) -> Iterator[Ticket]:
        """A ticket for whoever has that key; given back if the block fails, else by its holder."""
        tenant = NO_KEY if key_id is None else key_id
        ticket = Ticket(Share(tenant, self.key_weights.get(tenant, 1.0)), _admission=self)
        try:
            yield ticket
        except BaseException:
            ticket.leave()
            raise

    def claim(self, ticket: Ticket, num_answers: int, num_tokens: int) -> None:
        self._check_key(ticket.share.tenant, num_answers)
        total, mine = self._totals(), self._of(ticket)
        limit = self.max_answers
        if not self._has_room(ticket, total.answers, mine.answers, num_answers, limit):
            self._refuse("answers", f"{total.answers} answers are running or waiting", limit)
        ticket.num_answers += num_answers
        mine.answers += num_answers
        self.settle(ticket, num_tokens)

    def settle(self, ticket: Ticket, num_tokens: int) -> None:
        mine = self._of(ticket)
        mine.tokens -= ticket.num_tokens
        ticket.num_tokens = 0
        waiting = self._totals().tokens
        # A prompt that waits alone waits for nobody, however long it is.
        if num_tokens and waiting:
            limit = self.max_tokens
            if not self._has_room(ticket, waiting, mine.tokens, num_tokens, limit):
                self._refuse("tokens", f"{waiting} prompt tokens wait to be read", limit)
        ticket.num_tokens = num_tokens
        mine.tokens += num_tokens

    def leave(self, ticket: Ticket) -> None:
        held = self._of(ticket)
        held.answers -= ticket.num_answers
        held.tokens -= ticket.num_tokens
        if held.answers == 0:
            self._held.pop(ticket.share.tenant)
        if ticket.num_answers:
            self._ends.append(self.clock())

    def report(self) -> dict[str, object]:
        """For ``/admin/stats``. Keys are told by the first digits of their SHA-256."""
        total = self._totals()
        keys = {
            tenant: {"answers": held.answers, "waiting_prompt_tokens": held.tokens}
            for tenant, held in self._held.items()
        }
        return {
            "answers": total.answers,
            "max_answers": self.max_answers,
            "waiting_prompt_tokens": total.tokens,
            "max_waiting_prompt_tokens": self.max_tokens,
            "rejected": dict(self.rejected),
            "keys": keys,
        }

    def _of(self, ticket: Ticket) -> Held:
        return self._held.setdefault(ticket.share.tenant, Held())

    def _totals(self) -> Held:
        held = self._held.values()
        return Held(sum(h.answers for h in held), sum(h.tokens for h in held))

    def _has_room(self, ticket: Ticket, total: int, mine: int, wanted: int, limit: int) -> bool:
        if total + wanted <= limit - limit // KEPT_PART:
            return True
        weights = {ticket.share.tenant: ticket.share.tenant_weight, **self.key_weights}
        fraction = ticket.share.tenant_weight / sum(weights.values())
        return total + wanted <= limit and mine + wanted <= fraction * limit

    def _check_key(self, tenant: str, num_answers: int) -> None:
        limit = self.max_answers_per_key
        mine = self._held.get(tenant, Held()).answers
        if limit is None or mine + num_answers <= limit:
            return
        if num_answers > limit:
            message = f"Invalid value for n: a key may have {limit} answers at once."
            raise ApiError(400, message, param="n", code="invalid_value")
        self.rejected["key"] += 1
        self._warn(f"key {tenant} has {mine} answers, the limit is {limit}")
        raise ApiError(
            429,
            f"{mine} answers for this key are running or waiting, the limit is {limit}: wait for "
            "one to end.",
            code="rate_limit_exceeded",
            headers={"Retry-After": str(self._retry_after_s())},
        )

    def _refuse(self, reason: str, what: str, limit: int) -> None:
        self.rejected[reason] += 1
        self._warn(what)
        raise EngineOverloaded(
            f"{what}, the limit is {limit}.", retry_after_s=self._retry_after_s()
        )

    def _warn(self, what: str) -> None:
        """One line for each burst of refusals."""
        now = self.clock()
        if now - self._logged_at >= LOG_EVERY_S:
            self._logged_at = now
            most = max(self._held.items(), key=lambda item: item[1].answers, default=None)
            who = "" if most is None else f"; key {most[0]} has {most[1].answers} answers"
            log.warning("refusing requests: %s%s", what, who)

    def _retry_after_s(self) -> int:
        """Until a place should be free, as answers have ended lately."""
        if len(self._ends) < 2:
            return 1
        rate = len(self._ends) / max(self.clock() - self._ends[0], 1e-3)
        return math.ceil(min(max(1 / rate, 1.0), MAX_RETRY_AFTER_S))
