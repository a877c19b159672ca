"""Whose turn it is: waiting sequences in a fair order between tenants and between their adapters.

What one tenant asks of one adapter is a flow. Everyone's account grows by what they are given,
divided by their weight; the tenant that has been given least goes first, then the flow that has
been given least of that tenant's, and within a flow first come first served. Who comes back from
idleness starts level with those that wait, and who asks for less than its share gets little
credit for that: time with few requests or none earns nothing, and nobody can starve.
After the Virtual Token Counter (Sheng et al., "Fairness in Serving Large Language Models", OSDI
2024), in two levels, so that a tenant's share does not grow with its adapters. Knows no tensors and
no limit of seats.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Container, Iterator, Set
from collections.abc import Sequence as Row
from dataclasses import dataclass, field
from heapq import heapify, heappop, heappush
from typing import Generic, TypeVar

from server.engine.sequence import Sequence

DECODE_COST = 4.0  # prompt tokens that one generated token counts as: about what it takes in time
CREDIT = 4096.0  # tokens by which who asks for little may stay behind who waits: a few requests


@dataclass(slots=True, eq=False)
class Account:
    """What somebody has been given, in weighted tokens, and what they have here."""

    weight: float = 1.0
    served: float = 0.0
    num_here: int = 0  # sequences, waiting or seated
    num_seated: int = 0  # running or suspended

    @property
    def num_waiting(self) -> int:
        return self.num_here - self.num_seated


A = TypeVar("A", bound=Account)
Turn = tuple[float, int, bool, float, int, int]


class Ledger(Generic[A]):
    """Accounts among which something is shared."""

    def __init__(self) -> None:
        self._accounts: dict[str | None, A] = {}
        self._level = 0.0  # what the least served waiting account has been given; never falls

    def enter(self, key: str | None, weight: float, make: Callable[[], A]) -> A:
        """One more sequence for the account ``key``, which is made if there is none."""
        account = self._accounts.get(key)
        if account is None:
            account = self._accounts[key] = make()
        self._raise_level()
        credit = CREDIT / weight if account.num_here else 0.0
        account.served = max(account.served, self._level - credit)
        account.weight = weight
        account.num_here += 1
        return account

    def leave(self, account: A) -> None:
        """One sequence less; accounts that want nothing and had no more than others are closed."""
        account.num_here -= 1
        if account.num_here > 0:
            return
        if not self.busy():  # whoever comes next starts level with who left last
            self._level = max(self._level, account.served)
        self._raise_level()
        for key, idle in [*self._accounts.items()]:
            if idle.num_here == 0 and idle.served <= self._level:
                del self._accounts[key]

    def busy(self) -> list[A]:
        return [account for account in self._accounts.values() if account.num_here > 0]

    def fractions(self) -> dict[A, float]:
        """The part that is each busy account's while all want more."""
        busy = self.busy()
        total = sum(account.weight for account in busy)
        return {account: account.weight / total for account in busy}

    def _raise_level(self) -> None:
        busy = self.busy()
        waiting = [account.served for account in busy if account.num_waiting]
        if waiting:
            self._level = max(self._level, min(waiting))
        else:  # everybody gets what they ask for: nobody is owed anything
            self._level = max(self._level, *(account.served for account in busy), 0.0)


@dataclass(slots=True, eq=False)
class Flow(Account):
    """One tenant's requests for one adapter."""

    adapter: str | None = None
    waiting: deque[Sequence] = field(default_factory=deque)


@dataclass(slots=True, eq=False)
class Tenant(Account):
    """Whoever requests count for."""

    flows: Ledger[Flow] = field(default_factory=Ledger)


class FairLine:
    """All that wait, and the accounts of all that wait or have a seat."""

    def __init__(self) -> None:
        self._tenants: Ledger[Tenant] = Ledger()
        self._places: dict[Sequence, tuple[Tenant, Flow]] = {}
        self._num_waiting = 0

    def __len__(self) -> int:
        """Waiting sequences."""
        return self._num_waiting

    def __contains__(self, seq: object) -> bool:
        return isinstance(seq, Sequence) and seq in self.flow_of(seq).waiting

    def __iter__(self) -> Iterator[Sequence]:
        return self.in_turn()

    def flow_of(self, seq: Sequence) -> Flow:
        return self._places[seq][1]

    def tenant_of(self, seq: Sequence) -> Tenant:
        return self._places[seq][0]

    # --- moves ----------------------------------------------------------------------------------

    def add(self, seq: Sequence) -> None:
        """A new sequence, behind those of its flow that are as urgent."""
        share, adapter = seq.request.share, seq.request.adapter
        tenant = self._tenants.enter(share.tenant, share.tenant_weight, Tenant)
        flow = tenant.flows.enter(adapter, share.adapter_weight, lambda: Flow(adapter=adapter))
        later = (i for i, other in enumerate(flow.waiting) if _priority(other) > _priority(seq))
        flow.waiting.insert(next(later, len(flow.waiting)), seq)
        self._places[seq] = tenant, flow
        self._num_waiting += 1

    def seat(self, seq: Sequence) -> None:
        """From the line to a seat."""
        self.flow_of(seq).waiting.remove(seq)
        self._num_waiting -= 1
        self._count_seat(seq, 1)

    def put_back(self, seq: Sequence) -> None:
        """From its seat to the head of its flow."""
        self._count_seat(seq, -1)
        self.flow_of(seq).waiting.appendleft(seq)
        self._num_waiting += 1

    def leave(self, seq: Sequence, *, is_seated: bool) -> None:
        """It has ended."""
        tenant, flow = self._places[seq]
        if is_seated:
            self._count_seat(seq, -1)
        else:
            flow.waiting.remove(seq)
            self._num_waiting -= 1
        del self._places[seq]
        tenant.flows.leave(flow)
        self._tenants.leave(tenant)

    def charge(self, seq: Sequence, num_tokens: int) -> None:
        """``seq`` is given ``num_tokens`` of a step; below 0: they are taken back."""
        cost = math.copysign(DECODE_COST, num_tokens) if seq.num_pending == 1 else num_tokens
        for account in self._places[seq]:
            account.served += cost / account.weight

    def _count_seat(self, seq: Sequence, change: int) -> None:
        for account in self._places[seq]:
            account.num_seated += change

    # --- questions ------------------------------------------------------------------------------

    def heads(self) -> list[Sequence]:
        """Who is next of each flow, in fair order."""
        return sorted((flow.waiting[0] for flow in self._flows_waiting()), key=self._turn)

    def in_turn(
        self,
        begun: Set[Sequence] = frozenset(),
        passed: Container[Flow] = (),
        first: Sequence | None = None,
    ) -> Iterator[Sequence]:
        """Waiting sequences in fair order, looked up anew at each step, as charges come in.

        Args:
            begun: seated ones that still read their prompts; they come first within their flows.
            passed: flows whose waiting sequences are left out; may grow meanwhile.
            first: a waiting one that comes before all others.
        """
        if first is not None and first in self:
            yield first
        else:
            first = None
        queues = self._queues(begun, passed)
        line = [(self._turn(queue[0]), flow, queue) for flow, queue in queues.items()]
        heapify(line)
        while line:
            turn, flow, queue = heappop(line)
            seq = queue[0]
            if flow in passed and seq not in begun:
                continue
            if (turn_now := self._turn(seq)) > turn:  # it was charged meanwhile
                heappush(line, (turn_now, flow, queue))
                continue
            queue.popleft()
            if seq is not first:
                yield seq
            if queue:
                heappush(line, (self._turn(queue[0]), flow, queue))

    def _queues(self, begun: Set[Sequence], passed: Container[Flow]) -> dict[Flow, deque[Sequence]]:
        queues: dict[Flow, deque[Sequence]] = {}
        for seq in sorted(begun, key=lambda s: s.number):
            queues.setdefault(self.flow_of(seq), deque()).append(seq)
        for flow in self._flows_waiting():
            if flow not in passed:
                queues.setdefault(flow, deque()).extend(flow.waiting)
        return queues

    def _flows_waiting(self) -> list[Flow]:
        return [f for t in self._tenants.busy() for f in t.flows.busy() if f.waiting]

    def is_before(self, one: Sequence, other: Sequence) -> bool:
        """Whose turn comes first."""
        return self._turn(one) < self._turn(other)

    def tenant_behind(self) -> Tenant | None:
        """The busy tenant that has been given least; of two that are level, who is new."""
        busy = self._tenants.busy()
        return min(busy, key=lambda tenant: (tenant.served, tenant.num_seated), default=None)

    def holdings(self, amounts: dict[Sequence, int], total: int) -> Holdings:
        """What seated sequences hold of ``total``, against their shares of it."""
        over: dict[Account, float] = {}
        for tenant, fraction in self._tenants.fractions().items():
            over[tenant] = -fraction * total
            for flow, part in tenant.flows.fractions().items():
                over[flow] = -fraction * part * total
        for seq, amount in amounts.items():
            for account in self._places[seq]:
                over[account] += amount
        return Holdings(self, over, [*amounts])

    def _turn(self, seq: Sequence) -> Turn:
        tenant, flow = self._places[seq]
        is_new = seq.first_token_at is None  # else somebody was reading it when it lost its seat
        return tenant.served, tenant.num_seated, is_new, flow.served, flow.num_seated, seq.number


@dataclass(frozen=True, slots=True)
class Holdings:
    """How much more than its share each account holds of something; below 0: less."""

    _line: FairLine
    _over: dict[Account, float]
    _holders: Row[Sequence]
    _givers: dict[tuple[Tenant | None, int], Sequence | None] = field(default_factory=dict)

    def over_tenant(self, seq: Sequence) -> float:
        return self._over[self._line.tenant_of(seq)]

    def over_flow(self, seq: Sequence) -> float:
        return self._over[self._line.flow_of(seq)]

    def giver(self, newcomer: Sequence, wanted: int) -> Sequence | None:
        """Who could spare ``wanted``: of another tenant if the newcomer's has less than its share,
        else of another of its adapters if that is so between them."""
        if self.over_tenant(newcomer) + wanted <= 0:
            within = None
        elif self.over_flow(newcomer) + wanted <= 0:
            within = self._line.tenant_of(newcomer)
        else:
            return None
        if (within, wanted) not in self._givers:
            self._givers[within, wanted] = self._giver(within, wanted)
        return self._givers[within, wanted]

    def _giver(self, within: Tenant | None, wanted: int) -> Sequence | None:
        over = self.over_tenant if within is None else self.over_flow
        givers = [
            seq
            for seq in self._all_but_first()
            if over(seq) >= wanted and (within is None or self._line.tenant_of(seq) is within)
        ]
        return max(givers, key=lambda s: (self.over_flow(s) > 0, s.number), default=None)

    def loser(self) -> Sequence | None:
        """Who gives way to one that is seated: first tenants and flows that hold more than their
        shares, and of those the youngest."""
        return max(
            self._all_but_first(),
            key=lambda s: (self.over_tenant(s) > 0, self.over_flow(s) > 0, s.number),
            default=None,
        )

    def _all_but_first(self) -> list[Sequence]:
        """Who came first of all keeps what it has: somebody has to get to an end."""
        first = min(self._holders, key=lambda s: s.number, default=None)
        return [seq for seq in self._holders if seq is not first]


def _priority(seq: Sequence) -> int:
    return seq.request.priority
