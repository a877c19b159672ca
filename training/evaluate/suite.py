"""A suite of evaluation tasks, read once from YAML. Knows no model and reads no data.

Relative data paths are relative to the folder that ``--data`` names, else to the working directory.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from pydantic import Field, ValidationError, field_validator, model_validator

from training.errors import InvalidConfig
from training.keys.data import DataSource
from training.keys.fields import Fraction, Keys, Positive
from training.yaml_file import read_yaml

Perturbation = Literal["typos", "punctuation", "case", "homophones"]
PERTURBATIONS: tuple[Perturbation, ...] = ("typos", "punctuation", "case", "homophones")
_GENERATES = ("generation", "classification")


class Robustness(Keys):
    """The same questions under noise; a score is the metric with it over the metric without."""

    perturbations: tuple[Perturbation, ...] = Field(default=PERTURBATIONS, min_length=1)
    rate: Fraction = 0.1  # of the words or characters that a perturbation could change
    num_samples: Positive | None = None  # seeded, of the task's questions; None: all


class _HasData(Keys):
    data: DataSource

    @field_validator("data", mode="before")
    @classmethod
    def _text_is_a_path(cls, given: Any) -> Any:
        return {"path": given} if isinstance(given, str) else given

    @field_validator("data")
    @classmethod
    def _weight_means_nothing(cls, data: DataSource) -> DataSource:
        if "weight" in data.model_fields_set:
            raise ValueError("weight mixes training data; a suite has no use for it")
        return data


class General(_HasData):
    """Text on which an adapter should not become worse than its base."""


class Task(_HasData):
    """One question asked of base and adapter alike."""

    name: str = Field(pattern=r"^[A-Za-z0-9_.-]{1,64}$")
    kind: Literal["perplexity", "generation", "classification"]
    system: str | None = None  # replaces the rows' own; {labels} becomes the list of labels
    max_new_tokens: Positive = 128
    labels: tuple[str, ...] | None = Field(default=None, min_length=2)  # None: those of the data
    robustness: Robustness | None = None

    @model_validator(mode="after")
    def _keys_fit_the_kind(self) -> Task:
        given = self.model_fields_set
        if self.kind not in _GENERATES:
            for key in ("system", "max_new_tokens", "robustness"):
                if key in given:
                    raise ValueError(f"{key} is for tasks that generate; {self.kind} does not")
        if self.kind != "classification":
            if self.labels is not None:
                raise ValueError(f"labels are for classification, not for {self.kind}")
            if self.system is not None and "{labels}" in self.system:
                raise ValueError("system names {labels}, which only classification has")
        return self


class Suite(Keys):
    """What is measured, in this order; ``general`` measures what was forgotten."""

    name: str = Field(pattern=r"^[A-Za-z0-9_.-]{1,64}$")
    tasks: tuple[Task, ...] = ()
    general: General | None = None

    @model_validator(mode="after")
    def _something_is_asked_once(self) -> Suite:
        names = [task.name for task in self.tasks]
        for name in names:
            if names.count(name) > 1:
                raise ValueError(f"two tasks are named {name!r}")
        if not names and self.general is None:
            raise ValueError("it has neither tasks nor a general set")
        return self


def load_suite(path: Path, data_folder: Path | None = None) -> Suite:
    """Reads ``path``; its relative data paths lie below ``data_folder``.

    Raises InvalidConfig naming the file, the key and the value.
    """
    settings = read_yaml(path)
    try:
        suite = Suite.model_validate(settings)
    except ValidationError as error:
        listed = "; ".join(_describe(problem) for problem in error.errors())
        raise InvalidConfig(f"{path}: {listed}", param="suite") from error
    return suite if data_folder is None else _below(suite, data_folder)


def _below(suite: Suite, folder: Path) -> Suite:
    tasks = tuple(_moved(task, folder) for task in suite.tasks)
    general = None if suite.general is None else _moved(suite.general, folder)
    return suite.model_copy(update={"tasks": tasks, "general": general})


def _moved(one: Any, folder: Path) -> Any:
    path = one.data.path
    if path.startswith("hub:") or Path(path).is_absolute():
        return one
    data = one.data.model_copy(update={"path": str(folder / path)})
    return one.model_copy(update={"data": data})


def _describe(problem: Any) -> str:
    key = ".".join(str(part) for part in problem["loc"])
    message = problem["msg"].removeprefix("Value error, ")
    if problem["type"] in ("missing", "extra_forbidden"):
        return f"{key}: {message}"
    shown = repr(problem["input"])
    shown = shown if len(shown) <= 80 else shown[:80] + "…"
    return f"{key}={shown}: {message}" if key else message
