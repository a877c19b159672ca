"""A tiny base, one adapter that learned colours, and suites that ask for them."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from artifacts.database import Database
from artifacts.home import Home
from artifacts.registry import Registry
from tests.training.conftest import Recorder
from training.config import parse_config
from training.run import train_adapter
from training.signals import StopRequest

COLOURS = ("red", "blue")


def questions() -> list[dict[str, str]]:
    return [{"instruction": f"{c} {i}", "output": c} for i in range(20) for c in COLOURS]


WriteSuite = Callable[..., Path]


@dataclass(frozen=True)
class World:
    """``colours@1`` is registered in ``home``; its training ran a suite under the strict gate."""

    home: Path
    base: Path
    data: Path
    events: Recorder

    @property
    def registry(self) -> Registry:
        home = Home.open(self.home)
        return Registry(home, Database(home.database_url))


def write_suite(folder: Path, data: Path, **changes: Any) -> Path:
    """One task of each kind, and a general set; ``changes`` replace keys of the suite."""
    asked: dict[str, Any] = {
        "name": "colours",
        "tasks": [
            {
                "name": "say",
                "kind": "classification",
                "data": {"path": str(data), "num_samples": 12},
                "max_new_tokens": 6,
                "robustness": {"num_samples": 6},
            },
            {
                "name": "chat",
                "kind": "generation",
                "data": {"path": str(data), "num_samples": 4},
                "max_new_tokens": 6,
            },
            {"name": "rows", "kind": "perplexity", "data": str(data)},
        ],
        "general": {"data": {"path": str(data), "num_samples": 3}},
    }
    path = folder / "suite.yaml"
    path.write_text(yaml.safe_dump(asked | changes), encoding="utf-8")
    return path


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory, tiny_base: Path) -> World:
    folder = tmp_path_factory.mktemp("world")
    data = folder / "colours.json"
    data.write_text(json.dumps(questions()), encoding="utf-8")
    settings = {
        "name": "colours",
        "base": str(tiny_base),
        "home": str(folder / "home"),
        "output_dir": str(folder / "run"),
        "data": [str(data)],
        "near_duplicates": "off",
        "epochs": 8,
        "rank": 8,
        "learning_rate": 0.01,
        "early_stopping_patience": None,
        "gate": "strict",
        "suite": str(write_suite(folder, data)),
        "license": "cc-by-4.0",
        "limits": "Knows two colours.",
        "trackers": [],
    }
    recorder = Recorder()
    train_adapter(parse_config(settings), recorder, StopRequest())
    return World(folder / "home", tiny_base, data, recorder)
