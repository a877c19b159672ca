"""A suite asked at the end of a training run, where base and adapter are at hand already."""

from __future__ import annotations

from typing import Any, Literal

from artifacts.base import Base
from artifacts.results import Results
from training.evaluate.answers import Answers
from training.evaluate.ask import ask
from training.evaluate.compare import compare
from training.evaluate.questions import PreparedSuite
from training.events import Reporter


class SuiteBeside:
    """Asks when told to, because only the run knows when its model is whose. Without a suite it
    does nothing."""

    def __init__(
        self, suite: PreparedSuite | None, base: Base, batch_size: int, reporter: Reporter
    ) -> None:
        self._suite = suite
        self._base = base
        self._batch_size = batch_size
        self._reporter = reporter
        self._answers: dict[str, Answers] = {}

    def ask(self, who: Literal["base", "adapter"], model: Any) -> None:
        """``model`` answers as ``who`` from here to the end of the call."""
        if self._suite is None:
            return
        facts = {"suite": self._suite.name, "subject": who}
        self._reporter.emit({"event": "suite", **facts})
        self._answers[who] = ask(model, self._base, self._suite, self._batch_size)

    @property
    def results(self) -> Results | None:
        """Once both have been asked."""
        if self._suite is None:
            return None
        return compare(self._suite, self._answers)
