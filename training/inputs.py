"""The light half of ``load``: home, registry, base files, rows. No torch model, no Trainer.

A mistake in a path or a row is told within two seconds of the start, before the heavy imports.
"""

from __future__ import annotations

from dataclasses import dataclass

from artifacts.base import Base, open_base, require_original
from artifacts.chat import ChatRenderer
from artifacts.database import Database
from artifacts.home import Home
from artifacts.registry import Registry
from training.combinations import check_device
from training.config import TrainingConfig
from training.data.load import TrainingData, load_data
from training.data.load_streamed import load_streamed
from training.data.place import check_places
from training.errors import InvalidConfig
from training.evaluate.questions import Preparation, PreparedSuite
from training.evaluate.suite import load_suite
from training.methods.start import StartAdapter, open_start, settled_by
from training.methods.targets import check_against_base
from training.plan import settle_max_length
from training.watch.trackers import check_trackers


@dataclass(frozen=True, slots=True)
class Inputs:
    """What a run is made from."""

    config: TrainingConfig  # with what ``start`` decides
    home: Home
    registry: Registry
    base: Base
    start: StartAdapter | None
    data: TrainingData
    suite: PreparedSuite | None  # asked at the end


def load_inputs(config: TrainingConfig, home: Home) -> Inputs:
    """Raises InvalidData, InvalidInput or NotFound for whatever cannot be trained from."""
    check_device(config)
    check_trackers(config)
    check_places([*config.data, *config.validation_data, *config.test_data])
    registry = Registry(home, Database(home.database_url))
    base = open_chat_base(config.base)
    require_original(base, "training")
    start = open_start(config, registry, base)
    config = settled_by(config, start)
    check_against_base(config, base)
    max_length = settle_max_length(config, base.context_length)
    renderer = ChatRenderer(base.tokenizer)
    if config.streaming:
        data = load_streamed(config, renderer, max_length, home.tmp)
    else:
        data = load_data(config, renderer, max_length)
    suite = None
    if config.suite is not None:
        suite = Preparation(base, config.seed).prepare(load_suite(config.suite))
    return Inputs(config, home, registry, base, start, data, suite)


def open_chat_base(source: str | None) -> Base:
    """A base that rows can be rendered for. Raises InvalidConfig, NotFound and InvalidInput."""
    base = open_base(source)
    if base.template_hash is None:
        raise InvalidConfig(
            f"{base.id} has no chat template, so its rows cannot be rendered; take the chat model, "
            "or put a chat_template.jinja beside its tokenizer",
            param="base",
        )
    return base
