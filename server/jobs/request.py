"""What a client may ask of a fine-tuning job: OpenAI's body and ours, as one ``JobRow``.

Fields follow OpenAI's specification of ``fine_tuning.jobs.create``; what cannot be honoured is
refused by name. ``loraloop`` takes training's own keys (``server.jobs.settings``).
"""

from __future__ import annotations

import secrets
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from artifacts.errors import InvalidInput
from server.fields import StrictBody, Text, neutral, refuse
from server.jobs.settings import BATCH_SIZE, EPOCHS, MULTIPLIER, TrainingSettings
from server.names import check_adapter_name
from server.tables import JobRow

AUTO = "auto"
MAX_SEED = 2**31 - 1

Metadata = Annotated[
    dict[Annotated[Text, Field(max_length=64)], Annotated[Text, Field(max_length=512)]],
    Field(max_length=16),
]
_Name = Annotated[Text, Field(max_length=256)]  # check_name says what is wrong with it
_FileId = Annotated[Text, Field(min_length=1, max_length=128)]

# OpenAI's name of a hyperparameter → training's.
_KEYS = {
    "n_epochs": "epochs",
    "batch_size": "batch_size",
    "learning_rate_multiplier": "learning_rate_multiplier",
    "beta": "dpo_beta",
}


class Hyperparameters(StrictBody):
    """OpenAI's three; ``auto`` leaves the choice to training."""

    n_epochs: Literal["auto"] | Annotated[int, EPOCHS] | None = None
    batch_size: Literal["auto"] | Annotated[int, BATCH_SIZE] | None = None
    learning_rate_multiplier: Literal["auto"] | Annotated[float, MULTIPLIER] | None = None

    def asked(self) -> dict[str, Any]:
        """All of them, ``auto`` where nothing was asked: what the job's record shows."""
        return {key: AUTO if value is None else value for key, value in self}


class DpoHyperparameters(Hyperparameters):
    """OpenAI's four of preference learning."""

    beta: Literal["auto"] | Annotated[float, Field(gt=0, le=1_000)] | None = None


class Supervised(StrictBody):
    hyperparameters: Hyperparameters | None = None


class Dpo(StrictBody):
    hyperparameters: DpoHyperparameters | None = None


class Method(StrictBody):
    """Which objective, with its hyperparameters under the objective's own name."""

    type: Literal["supervised", "dpo", "reinforcement"]
    supervised: Supervised | None = None
    dpo: Dpo | None = None
    reinforcement: Annotated[Any, neutral()] = None

    @model_validator(mode="after")
    def _refuse_other_methods(self) -> Method:
        if self.type == "reinforcement":
            message = "method.type 'reinforcement' is not supported: use supervised or dpo."
            raise refuse("unsupported_parameter", message, "type")
        other = "supervised" if self.type == "dpo" else "dpo"
        if getattr(self, other) is not None:
            message = f"method.{other} is given, and method.type is {self.type!r}: leave one out."
            raise refuse("invalid_combination", message, other)
        return self

    @property
    def hyperparameters(self) -> Hyperparameters | None:
        """Those of the chosen type."""
        if self.type == "dpo":
            return (self.dpo or Dpo()).hyperparameters or DpoHyperparameters()
        return None if self.supervised is None else self.supervised.hyperparameters


class CreateJob(StrictBody):
    """Body of POST /v1/fine_tuning/jobs. ``suffix`` is the adapter's name."""

    model: Text = Field(min_length=1, max_length=512, examples=["loraloop-embedded"])
    training_file: _FileId
    validation_file: _FileId | None = None
    hyperparameters: Hyperparameters | None = None
    method: Method | None = None
    suffix: _Name | None = None
    seed: int | None = Field(None, ge=0, le=MAX_SEED)
    metadata: Metadata | None = None
    integrations: Annotated[Any, neutral([])] = None
    loraloop: TrainingSettings | None = None

    @model_validator(mode="after")
    def _one_set_of_hyperparameters(self) -> CreateJob:
        if self.hyperparameters is None or self.method is None:
            return self
        if self.method.type == "dpo" or self.method.hyperparameters is not None:
            message = (
                f"Give hyperparameters inside method.{self.method.type} alone, not beside method."
            )
            raise refuse("invalid_combination", message, "hyperparameters")
        return self

    @property
    def chosen(self) -> Hyperparameters:
        """The hyperparameters, wherever they were given."""
        inner = None if self.method is None else self.method.hyperparameters
        return inner or self.hyperparameters or Hyperparameters()

    @property
    def objective(self) -> str | None:
        """Training's word for ``method.type``; None is its default."""
        return "dpo" if self.method is not None and self.method.type == "dpo" else None


class TrainAdapter(TrainingSettings):
    """Body of POST /admin/adapters/train: one call instead of upload and create."""

    name: _Name
    file_id: _FileId | None = None
    path: Text | None = Field(None, max_length=4096)
    examples: list[dict[str, Any]] | None = None
    seed: int | None = Field(None, ge=0, le=MAX_SEED)
    objective: Literal["sft", "dpo"] | None = None
    start_from: Text | None = Field(None, min_length=1, max_length=512)
    validation_file: _FileId | None = None
    learning_rate_multiplier: Annotated[float, MULTIPLIER] | None = None
    metadata: Metadata | None = None

    @model_validator(mode="after")
    def _one_source(self) -> TrainAdapter:
        given = [key for key in ("file_id", "path", "examples") if getattr(self, key) is not None]
        if len(given) != 1:
            got = " and ".join(given) or "none"
            message = f"Give exactly one of file_id, path and examples; got {got}."
            raise refuse("invalid_combination", message, given[0] if given else "file_id")
        if self.examples == []:
            raise refuse("invalid_value", "examples is empty: give at least one.", "examples")
        return self


def job_of(body: CreateJob, base_id: str, max_rank: int, start_from: str | None = None) -> JobRow:
    """The job that ``body`` asks for; ``start_from`` is the adapter version that its model means.

    Raises InvalidInput or InvalidName.
    """
    name = body.suffix if body.suffix is not None else f"tuned-{secrets.token_hex(4)}"
    settings = body.loraloop.given() if body.loraloop is not None else {}
    asked = body.chosen.asked()
    for parameter, value in asked.items():
        key = _KEYS[parameter]
        if value == AUTO:
            continue
        if key in settings:
            raise InvalidInput(
                f"Both hyperparameters.{parameter} and loraloop.{key} are given: give one.",
                param=f"loraloop.{key}",
            )
        settings[key] = value
    if body.objective is not None:
        settings["objective"] = body.objective
    check_adapter_name(name, "suffix", base_id)
    _settle(settings, max_rank, start_from)
    return _row(name, base_id, body.training_file, asked, settings, body)


def job_of_admin(
    body: TrainAdapter, file_id: str, base_id: str, max_rank: int, start_from: str | None = None
) -> JobRow:
    """The same job from our own body, whose data lies in the uploaded file ``file_id``."""
    settings = body.given()
    for key in ("learning_rate_multiplier", "objective"):
        if (value := getattr(body, key)) is not None:
            settings[key] = value
    parameters = [each for each in _KEYS if each != "beta" or body.objective == "dpo"]
    asked = {each: settings.get(_KEYS[each], AUTO) for each in parameters}
    check_adapter_name(body.name, "name", base_id)
    _settle(settings, max_rank, start_from)
    return _row(body.name, base_id, file_id, asked, settings, body)


def _settle(settings: dict[str, Any], max_rank: int, start_from: str | None) -> None:
    if settings.get("rank", 0) > max_rank:
        raise InvalidInput(
            f"rank {settings['rank']} is above {max_rank}, the most that this server can serve "
            "(LORALOOP_MAX_RANK).",
            param="rank",
        )
    if settings.get("objective", "sft") != "dpo":
        preferences = sorted(key for key in settings if key.startswith("dpo_"))
        if preferences:
            raise InvalidInput(
                f"{preferences[0]} belongs to preference learning: send method.type dpo with it.",
                param=preferences[0],
            )
    if start_from is not None:
        settings["start_from"] = start_from


def _row(
    name: str,
    base_id: str,
    training_file: str,
    asked: dict[str, Any],
    settings: dict[str, Any],
    body: CreateJob | TrainAdapter,
) -> JobRow:
    return JobRow(
        name=name,
        model=base_id,
        training_file=training_file,
        validation_file=body.validation_file,
        hyperparameters=asked,
        settings=settings,
        seed=secrets.randbelow(MAX_SEED) if body.seed is None else body.seed,
        user_metadata=body.metadata,
    )
