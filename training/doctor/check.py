"""``loraloop data check``: data files, or what a training file would train on, examined.

Shows nothing: see ``training.doctor.cli``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from artifacts.base import Base
from artifacts.chat import ChatRenderer
from artifacts.home import Home
from training.config import TrainingConfig, parse_config, read_settings
from training.data.load import examine
from training.data.load_streamed import load_streamed
from training.data.records import PreferencePair
from training.data.row_set import LoadedRow
from training.data.rows import BadRow
from training.data.sources import read_source
from training.doctor.report import Report
from training.errors import InvalidConfig
from training.inputs import open_chat_base
from training.keys.data import DataSource
from training.plan import settle_max_length
from training.stages import parse_stages

_CONFIGURATIONS = (".yaml", ".yml")


@dataclass(frozen=True, slots=True)
class Checked:
    """The report, and what it is about."""

    base: Base
    report: Report
    rows: Sequence[LoadedRow]  # usable and distinct; none of streamed data
    lengths: Sequence[int]  # tokens of each usable row before any cut; none of streamed data
    notes: list[str]


def check_data(files: Sequence[str], keys: dict[str, Any], against: Sequence[str]) -> list[Checked]:
    """``keys`` are keys of the configuration; they win over those of a training file. One answer,
    or one for each stage of a file with stages.

    Raises InvalidInput and NotFound for what is wrong with the question, and InvalidData where
    streamed data cannot be trained: those are not kept for a report.
    """
    configs, notes = read_question(files, keys)
    base = open_chat_base(configs[0].base)  # later stages may train on what an earlier one makes
    return [_check(config, base, against, notes) for config in configs]


def _check(config: TrainingConfig, base: Base, against: Sequence[str], notes: list[str]) -> Checked:
    renderer = ChatRenderer(base.tokenizer)
    max_length = settle_max_length(config, base.context_length)
    if config.streaming:
        if against:
            raise InvalidConfig("--against needs the rows in memory: streaming=false", param="data")
        streamed = load_streamed(config, renderer, max_length, Home.open(config.home).tmp)
        return Checked(base, streamed.report, [], [], notes)
    found = examine(config, renderer, max_length, [DataSource(path=path) for path in against])
    return Checked(base, found.report, found.data.rows, found.data.lengths, notes)


def read_question(
    files: Sequence[str], keys: dict[str, Any]
) -> tuple[list[TrainingConfig], list[str]]:
    """The configurations that are checked, and what their translation leaves out."""
    named = [file for file in files if Path(file).suffix.lower() in _CONFIGURATIONS]
    if not named:
        sources = {"name": "check", "data": list(files)}
        return [parse_config({**sources, "objective": _objective_of(files[0]), **keys})], []
    if len(files) > 1:
        raise InvalidConfig(
            f"{named[0]} is a training file and names its own data; give it alone", param="data"
        )
    own, notes = read_settings(Path(named[0]), [])
    if "stages" in own:
        return [stage.config for stage in parse_stages({**own, **keys})], notes
    return [parse_config({**own, **keys})], notes


def _objective_of(file: str) -> str:
    """What the first usable row is good for; a file that cannot be read is told of later."""
    from artifacts.errors import InvalidData

    try:
        records = (r for r in read_source(DataSource(path=file), 0) if not isinstance(r, BadRow))
        return "dpo" if isinstance(next(records, None), PreferencePair) else "sft"
    except InvalidData:
        return "sft"
