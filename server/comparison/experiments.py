"""A/B experiments: which arm answers a subject. Policy and its record; knows no torch and no HTTP.

An arm's ``model`` is always explicit (``name@3`` or the base id): whoever stores an experiment
has resolved aliases first, so moving an alias never changes a running experiment, and its versions
cannot be removed while it runs. The same subject meets the same arm until a re-weighting must move
it (``server.comparison.split``).
"""

from __future__ import annotations

import math
import random
import secrets
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass

from artifacts.database import Database
from artifacts.errors import InvalidInput, NotFound
from artifacts.names import VERSION
from artifacts.registry import set_uses
from server.comparison.split import SPACE, Segment, lay_out, locate, point_of, quotas
from server.tables import ExperimentRow

MAX_ARMS = 16
MAX_WEIGHT = 1e6


@dataclass(frozen=True, slots=True)
class Arm:
    """One branch of an experiment; ``weight`` is relative to the other arms'."""

    model: str
    weight: float

    @property
    def id(self) -> str:
        return self.model


@dataclass(frozen=True, slots=True)
class Experiment:
    """A running split: immutable; a new weighting is a new value with the same ``salt``."""

    name: str
    salt: str
    arms: tuple[Arm, ...]
    segments: tuple[Segment, ...]
    created_at: float
    updated_at: float

    @classmethod
    def new(cls, name: str, arms: Sequence[Arm]) -> Experiment:
        """Raises InvalidInput for fewer than two arms, equal arms or unusable weights."""
        _check_arms(arms)
        now = time.time()
        segments = lay_out(_quotas(arms))
        return cls(name, secrets.token_hex(8), tuple(arms), segments, now, now)

    def reweighted(self, arms: Sequence[Arm]) -> Experiment:
        """The same experiment with other weights or arms; moves no subject that need not move."""
        _check_arms(arms)
        segments = lay_out(_quotas(arms), self.segments)
        return Experiment(self.name, self.salt, tuple(arms), segments, self.created_at, time.time())

    def assign(self, subject: str | None, rng: random.Random) -> Arm:
        """The arm of ``subject``; a request without one meets a random arm."""
        point = rng.randrange(SPACE) if subject is None else point_of(self.salt, subject)
        model = locate(self.segments, point)
        return next(arm for arm in self.arms if arm.model == model)

    def share(self, model: str) -> float:
        """The part of all subjects that meets ``model``, 0…1."""
        total = sum(arm.weight for arm in self.arms)
        return sum(arm.weight for arm in self.arms if arm.model == model) / total


class Experiments:
    """The stored experiments, all held in memory: assigning one request touches no database.

    ``put`` and ``delete`` block on the database; every method may be called from any thread.
    """

    def __init__(self, database: Database, *, rng: random.Random | None = None) -> None:
        self._database = database
        self._rng = rng if rng is not None else random.Random()
        self._writing = threading.Lock()
        with database.reading() as session:
            rows = session.query(ExperimentRow).all()
            self._running = {row.name: _from_row(row) for row in rows}

    def assign(self, name: str, subject: str | None) -> Arm | None:
        """The arm that answers ``subject`` under the bare ``name``; None: no experiment runs."""
        experiment = self._running.get(name)
        return None if experiment is None else experiment.assign(subject, self._rng)

    def put(self, name: str, arms: Sequence[Arm]) -> Experiment:
        """Start an experiment or re-weight the running one of this name.

        Raises InvalidInput, NotFound if an arm's version has been removed, StorageError.
        """
        with self._writing:
            running = self._running.get(name)
            experiment = Experiment.new(name, arms) if running is None else running.reweighted(arms)
            with self._database.session() as session:
                set_uses(session, _user(name), _versions(arms))
                session.merge(_to_row(experiment))
            self._running[name] = experiment
        return experiment

    def get(self, name: str) -> Experiment:
        experiment = self._running.get(name)
        if experiment is None:
            raise NotFound(f"No experiment is named {name!r}. GET /admin/experiments lists them.")
        return experiment

    def all(self) -> list[Experiment]:
        return sorted(self._running.values(), key=lambda experiment: experiment.name)

    def delete(self, name: str) -> Experiment:
        """End the experiment; the bare name then means its champion again. Returns what ended."""
        with self._writing:
            experiment = self.get(name)
            with self._database.session() as session:
                row = session.get(ExperimentRow, name)
                if row is not None:
                    session.delete(row)
                set_uses(session, _user(name), [])
            del self._running[name]
        return experiment


def _check_arms(arms: Sequence[Arm]) -> None:
    if not 2 <= len(arms) <= MAX_ARMS:
        raise InvalidInput(
            f"An experiment needs 2 to {MAX_ARMS} arms, got {len(arms)}. To send everything to one "
            "version, move the champion alias there.",
            param="arms",
        )
    models = [arm.model for arm in arms]
    for model in models:
        if models.count(model) > 1:
            raise InvalidInput(f"Two arms mean the same model, {model}: join them.", param="arms")
    for arm in arms:
        if not (math.isfinite(arm.weight) and 0 < arm.weight <= MAX_WEIGHT):
            raise InvalidInput(
                f"The weight of arm {arm.model} is {arm.weight}: give a number above 0, "
                f"at most {MAX_WEIGHT:g}.",
                param="arms",
            )


def _user(name: str) -> str:
    """What a version's removal names when it is refused."""
    return f"experiment {name}"


def _versions(arms: Sequence[Arm]) -> list[tuple[str, int]]:
    """What the arms rely on; the base cannot be removed."""
    parts = [arm.model.partition("@") for arm in arms]
    return [(name, int(number)) for name, _, number in parts if VERSION.fullmatch(number)]


def _quotas(arms: Sequence[Arm]) -> dict[str, int]:
    return quotas({arm.model: arm.weight for arm in arms})


def _to_row(experiment: Experiment) -> ExperimentRow:
    return ExperimentRow(
        name=experiment.name,
        salt=experiment.salt,
        arms=[{"model": arm.model, "weight": arm.weight} for arm in experiment.arms],
        segments=[[segment.end, segment.arm] for segment in experiment.segments],
        created_at=experiment.created_at,
        updated_at=experiment.updated_at,
    )


def _from_row(row: ExperimentRow) -> Experiment:
    return Experiment(
        name=row.name,
        salt=row.salt,
        arms=tuple(Arm(arm["model"], arm["weight"]) for arm in row.arms),
        segments=tuple(Segment(end, arm) for end, arm in row.segments),
        created_at=row.created_at,
        updated_at=row.updated_at,
    )
