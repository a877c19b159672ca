"""``loraloop eval`` from names to files: find, prepare, load, ask, compare, write."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from artifacts.base import Base, open_base
from artifacts.database import Database
from artifacts.home import Home
from artifacts.registry import Registry
from training.errors import InvalidConfig
from training.evaluate.subjects import Candidate, find_candidate, the_base
from training.evaluate.suite import load_suite

if TYPE_CHECKING:
    from rich.console import Console

    from training.evaluate.ask import Tell
    from training.evaluate.questions import PreparedSuite


@dataclass(frozen=True, slots=True)
class EvalOptions:
    """What the command line asks for."""

    adapter: str
    suite: Path
    against: str | None = None
    data: Path | None = None
    base: str | None = None
    home: Path | None = None
    output: Path | None = None
    seed: int = 0
    batch_size: int = 64
    limit: int | None = None
    dtype: str = "auto"


def evaluate(options: EvalOptions, console: Console) -> Path:
    """Returns the folder with the report. Raises LoraloopError before any model is loaded."""
    # Before torch is loaded, see training.run: threads that wait must sleep.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    from training.evaluate.questions import Preparation

    suite = load_suite(options.suite, options.data)
    base = open_base(options.base)
    candidates = _candidates(options, base)
    prepared = Preparation(base, options.seed, options.limit).prepare(suite)
    for note in prepared.notes:
        console.print(f"note: {note}", markup=False)
    from transformers.utils import logging

    from training.evaluate.answers import Answers
    from training.evaluate.ask import ask  # torch, transformers
    from training.evaluate.compare import compare
    from training.evaluate.report import write_report
    from training.evaluate.subjects import Models
    from training.verdict import suite_gates

    logging.disable_progress_bar()  # ours stands for all
    models = Models(base, candidates, options.dtype)
    answers: dict[str, Answers] = {}
    for who in candidates:
        with models.turn_of(who) as model, _progress(prepared, who, console) as tell:
            answers[who] = ask(model, base, prepared, options.batch_size, tell)
    results = compare(prepared, answers, {who: c.facts for who, c in candidates.items()})
    gates = suite_gates(results) if "adapter" in candidates else []
    folder = options.output or _default_folder(candidates, prepared.name)
    for file in write_report(folder, results, gates, prepared, answers):
        console.print(f"wrote {file}", markup=False, highlight=False)
    return folder


def _candidates(options: EvalOptions, base: Base) -> dict[str, Candidate]:
    home = Home.open(options.home)
    database = Database(home.database_url)
    try:
        registry = Registry(home, database)
        found = {"base": the_base(base)}
        adapter = find_candidate(options.adapter, registry, base)
        if adapter.folder is not None:
            found["adapter"] = adapter
        elif options.against is not None:
            raise InvalidConfig(
                f"{options.adapter!r} is the base: name an adapter to compare with "
                f"{options.against!r}",
                param="against",
            )
        if options.against is not None:
            found["against"] = find_candidate(options.against, registry, base)
    finally:
        database.close()
    return found


def _default_folder(candidates: dict[str, Candidate], suite: str) -> Path:
    who = candidates.get("adapter", candidates["base"])
    return Path("reports") / f"eval-{who.id}-{suite}"


@contextmanager
def _progress(suite: PreparedSuite, who: str, console: Console) -> Iterator[Tell]:
    from rich.progress import Progress

    with Progress(console=console, transient=True) as bar:
        bars = {
            task.name: bar.add_task(f"{who}: {task.name}", total=task.num_answers)
            for task in suite.all
        }
        yield lambda task, more: bar.advance(bars[task], more)
