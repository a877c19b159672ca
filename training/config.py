"""What one training run is asked to do: a frozen record, read once from YAML and ``key=value``.

Knows neither torch nor the base; values that depend on them (``None`` here) are settled in
``training.plan``. Relative paths are relative to the working directory. The keys and the reasons
for their defaults stand in ``training.keys``, one file per group.
"""

from __future__ import annotations

import difflib
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError, field_validator, model_validator

from artifacts.names import NAME
from training.combinations import check_combination
from training.errors import InvalidConfig
from training.keys.adapter import AdapterKeys
from training.keys.data import DataKeys
from training.keys.optimisation import OptimisationKeys
from training.keys.watching import WatchingKeys
from training.llamafactory.keys import KEYS as THEIR_KEYS
from training.llamafactory.reader import is_llamafactory, translate
from training.yaml_file import read_yaml

# Keys of other trainers whose adapters the server could not answer with.
_NOT_SERVED = {
    "use_dora": "DoRA's magnitudes cannot be served beside other adapters; use_rslora can",
    "modules_to_save": "whole modules cannot be served beside other adapters; method=full trains "
    "a base of its own",
}
_NOT_SERVED["additional_target"] = _NOT_SERVED["modules_to_save"]  # LLaMA-Factory's word for it


class TrainingConfig(AdapterKeys, OptimisationKeys, DataKeys, WatchingKeys):
    """One training run. ``None`` means: settled from the base and the data."""

    # what to make, from what, and where; the other keys stand in training.keys
    name: str  # the adapter's name in the registry
    base: str | None = None  # folder or hub id; None is the embedded base
    home: Path | None = None  # None: LORALOOP_HOME, else ./.loraloop
    output_dir: Path | None = None  # checkpoints and logs; None: <home>/jobs/train-<name>
    description: str = ""
    license: str | None = None  # of the data and the adapter, for the model card
    limits: str = ""  # what the version is not meant for, for the model card

    @field_validator("name")
    @classmethod
    def _name_is_valid(cls, name: str) -> str:
        if not NAME.fullmatch(name):
            raise ValueError(f"an adapter name matches {NAME.pattern}")
        return name

    @model_validator(mode="after")
    def _modules_are_named(self) -> TrainingConfig:
        if self.target_modules == ():
            raise ValueError("target_modules is empty; list module names or say all-linear")
        return self

    @property
    def scaled_alpha(self) -> float:
        """``alpha`` as it is used."""
        return 2.0 * self.rank if self.alpha is None else self.alpha


def load_config(path: Path, overrides: list[str]) -> TrainingConfig:
    """What ``path`` asks for, ``key=value`` laid over it. Raises InvalidConfig."""
    return parse_config(read_settings(path, overrides)[0])


def read_settings(path: Path, overrides: list[str]) -> tuple[dict[str, Any], list[str]]:
    """The plain values of ``path`` with ``key=value`` laid over them (values are YAML: ``true``,
    ``[a, b]``, ``3``), and what whoever starts the run should know about them.

    A file of LLaMA-Factory's is translated. Raises InvalidConfig naming the key, the value and the
    remedy.
    """
    settings = read_yaml(path)
    laid_over = dict(_parse_override(override) for override in overrides)
    if is_llamafactory(settings):
        ours = {key: value for key, value in laid_over.items() if key not in THEIR_KEYS}
        theirs = {key: value for key, value in laid_over.items() if key in THEIR_KEYS}
        return translate(settings | theirs, ours)
    return settings | laid_over, []


def _parse_override(text: str) -> tuple[str, Any]:
    key, separator, value = text.partition("=")
    if not separator:
        raise InvalidConfig(f"{text!r} is not of the form key=value")
    return key.strip(), _parse_scalar(key, value)


def parse_config(settings: dict[str, Any]) -> TrainingConfig:
    """Validates plain values. Raises InvalidConfig naming every key at fault."""
    known = list(TrainingConfig.model_fields)
    for key in settings:
        if key not in known:
            near = difflib.get_close_matches(str(key), known, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"known keys: {', '.join(known)}"
            hint = _NOT_SERVED.get(str(key), hint)
            raise InvalidConfig(f"unknown configuration key {key!r}; {hint}", param=str(key))
    try:
        config = TrainingConfig.model_validate(settings)
    except ValidationError as error:
        first = error.errors()[0]["loc"]
        raise InvalidConfig(
            "; ".join(_describe(problem) for problem in error.errors()),
            param=str(first[0]) if first else None,
        ) from error
    check_combination(config)
    return config


def _describe(problem: Any) -> str:
    key = ".".join(str(part) for part in problem["loc"][:2])
    if problem["type"] == "missing":
        return f"{key} is missing"
    message = problem["msg"].removeprefix("Value error, ")
    return f"{key}={problem['input']!r}: {message}" if key else message


def _parse_scalar(key: str, value: str) -> Any:
    try:
        return yaml.safe_load(value)
    except yaml.YAMLError as error:
        raise InvalidConfig(f"{key}={value!r} is not valid YAML", param=key) from error
