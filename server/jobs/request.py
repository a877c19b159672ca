"""What a client may ask of a fine-tuning job: OpenAI's body and ours, as one ``JobRow``.

Knows the names of training's settings (a test compares them with training itself, which the server
must not import) and nothing of how they are used.
"""

from __future__ import annotations

import secrets
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from artifacts.errors import InvalidInput
from server.fields import StrictBody, Text, neutral, refuse
from server.names import check_adapter_name
from server.tables import JobRow

AUTO = "auto"
MAX_SEED = 2**31 - 1
EPOCHS = Field(gt=0, le=10_000)
BATCH_SIZE = Field(ge=1, le=65_536)
MULTIPLIER = Field(gt=0, le=1_000)

Fraction = Annotated[float, Field(ge=0, le=1)]
Count = Annotated[int, Field(ge=1, le=2**31)]
Metadata = Annotated[
    dict[Annotated[Text, Field(max_length=64)], Annotated[Text, Field(max_length=512)]],
    Field(max_length=16),
]
ModulePath = Annotated[Text, Field(min_length=1, max_length=256)]
_Name = Annotated[Text, Field(max_length=256)]  # check_name says what is wrong with it


class TrainingSettings(StrictBody):
    """Training's own keys; what is left out is training's default."""

    rank: int | None = Field(None, ge=1, le=256)
    alpha: float | None = Field(None, gt=0)
    dropout: float | None = Field(None, ge=0, lt=1)
    target_modules: Literal["all-linear"] | list[ModulePath] | None = None
    use_rslora: bool | None = None
    learning_rate: float | None = Field(None, gt=0)
    epochs: Annotated[float, EPOCHS] | None = None
    max_steps: Count | None = None
    batch_size: Annotated[int, BATCH_SIZE] | None = None
    gradient_accumulation: Count | None = None
    lr_scheduler: Literal["linear", "cosine", "constant"] | None = None
    warmup_ratio: Fraction | None = None
    weight_decay: float | None = Field(None, ge=0)
    max_grad_norm: float | None = Field(None, ge=0)
    gradient_checkpointing: bool | None = None
    dtype: Literal["auto", "float32", "bfloat16"] | None = None
    max_length: int | None = Field(None, gt=1, le=2**31)
    max_bad_rows: int | None = Field(None, ge=0)
    split: list[Fraction] | None = Field(None, min_length=3, max_length=3)
    eval_steps: Count | None = None
    early_stopping_patience: Count | None = None
    early_stopping_threshold: float | None = Field(None, ge=0)
    save_steps: Count | None = None
    logging_steps: Count | None = None

    def given(self) -> dict[str, Any]:
        """The settings that the client chose; null means something only where training says so."""
        chosen = self.model_dump(include=set(TrainingSettings.model_fields), exclude_unset=True)
        return {
            key: value
            for key, value in chosen.items()
            if value is not None or key == "early_stopping_patience"
        }


class Hyperparameters(StrictBody):
    """OpenAI's three; ``auto`` leaves the choice to training."""

    n_epochs: Literal["auto"] | Annotated[int, EPOCHS] | None = None
    batch_size: Literal["auto"] | Annotated[int, BATCH_SIZE] | None = None
    learning_rate_multiplier: Literal["auto"] | Annotated[float, MULTIPLIER] | None = None

    def asked(self) -> dict[str, Any]:
        """All three, ``auto`` where nothing was asked: what the job's record shows."""
        return {key: AUTO if value is None else value for key, value in self}


class Supervised(StrictBody):
    hyperparameters: Hyperparameters | None = None


class Method(StrictBody):
    type: Literal["supervised", "dpo", "reinforcement"]
    supervised: Supervised | None = None
    dpo: Annotated[Any, neutral()] = None
    reinforcement: Annotated[Any, neutral()] = None

    @model_validator(mode="after")
    def _refuse_other_methods(self) -> Method:
        if self.type != "supervised":
            message = f"method.type {self.type!r} is not supported by this server; use supervised."
            raise refuse("unsupported_parameter", message, "type")
        return self


class CreateJob(StrictBody):
    """Body of POST /v1/fine_tuning/jobs. ``suffix`` is the adapter's name."""

    model: Text = Field(min_length=1, max_length=512, examples=["loraloop-embedded"])
    training_file: Text = Field(min_length=1, max_length=128)
    validation_file: Annotated[Text | None, neutral()] = None
    hyperparameters: Hyperparameters | None = None
    method: Method | None = None
    suffix: _Name | None = None
    seed: int | None = Field(None, ge=0, le=MAX_SEED)
    metadata: Metadata | None = None
    integrations: Annotated[Any, neutral([])] = None
    loraloop: TrainingSettings | None = None

    @model_validator(mode="after")
    def _one_set_of_hyperparameters(self) -> CreateJob:
        inner = self.method.supervised if self.method is not None else None
        if self.hyperparameters and inner and inner.hyperparameters:
            message = "Give either hyperparameters or method.supervised.hyperparameters, not both."
            raise refuse("invalid_combination", message, "hyperparameters")
        return self

    @property
    def chosen(self) -> Hyperparameters:
        """The hyperparameters, wherever they were given."""
        if self.method is not None and self.method.supervised is not None:
            inner = self.method.supervised.hyperparameters
            if inner is not None:
                return inner
        return self.hyperparameters or Hyperparameters()


class TrainAdapter(TrainingSettings):
    """Body of POST /admin/adapters/train: one call instead of upload and create."""

    name: _Name
    file_id: Text | None = Field(None, max_length=128)
    path: Text | None = Field(None, max_length=4096)
    examples: list[dict[str, Any]] | None = None
    seed: int | None = Field(None, ge=0, le=MAX_SEED)
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


def job_of(body: CreateJob, base_id: str, max_rank: int) -> JobRow:
    """The job that ``body`` asks for. Raises InvalidInput or InvalidName."""
    name = body.suffix if body.suffix is not None else f"tuned-{secrets.token_hex(4)}"
    settings = body.loraloop.given() if body.loraloop is not None else {}
    asked = body.chosen.asked()
    pairs = (
        ("epochs", "n_epochs"),
        ("batch_size", "batch_size"),
        ("learning_rate_multiplier", "learning_rate_multiplier"),
    )
    for key, parameter in pairs:
        if asked[parameter] == AUTO:
            continue
        if key in settings:
            raise InvalidInput(
                f"Both hyperparameters.{parameter} and loraloop.{key} are given: give one.",
                param=f"loraloop.{key}",
            )
        settings[key] = asked[parameter]
    check_adapter_name(name, "suffix", base_id)
    _check_rank(settings, max_rank)
    return _row(name, base_id, body.training_file, asked, settings, body)


def job_of_admin(body: TrainAdapter, file_id: str, base_id: str, max_rank: int) -> JobRow:
    """The same job from our own body, whose data lies in the uploaded file ``file_id``."""
    settings = body.given()
    if body.learning_rate_multiplier is not None:
        settings["learning_rate_multiplier"] = body.learning_rate_multiplier
    asked = {
        "n_epochs": settings.get("epochs", AUTO),
        "batch_size": settings.get("batch_size", AUTO),
        "learning_rate_multiplier": settings.get("learning_rate_multiplier", AUTO),
    }
    check_adapter_name(body.name, "name", base_id)
    _check_rank(settings, max_rank)
    return _row(body.name, base_id, file_id, asked, settings, body)


def _check_rank(settings: dict[str, Any], max_rank: int) -> None:
    if settings.get("rank", 0) > max_rank:
        raise InvalidInput(
            f"rank {settings['rank']} is above {max_rank}, the most that this server can serve "
            "(LORALOOP_MAX_RANK).",
            param="rank",
        )


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
        hyperparameters=asked,
        settings=settings,
        seed=secrets.randbelow(MAX_SEED) if body.seed is None else body.seed,
        user_metadata=body.metadata,
    )
