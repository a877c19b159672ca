"""Training's own keys as a client may set them. Knows their names and limits, not their use.

The server must not import training: ``tests/server/control/test_job_request.py`` compares the two.
Not among them is what decides about this machine (places, threads, trackers), what needs a file of
the operator's (suites), and what other fields of a job say (data, seed, objective, start).
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from server.fields import StrictBody, Text, refuse

EPOCHS = Field(gt=0, le=10_000)
BATCH_SIZE = Field(ge=1, le=65_536)
MULTIPLIER = Field(gt=0, le=1_000)

Fraction = Annotated[float, Field(ge=0, le=1)]
Count = Annotated[int, Field(ge=1, le=2**31)]
NotNegative = Annotated[float, Field(ge=0)]
Above0 = Annotated[float, Field(gt=0)]
ModulePath = Annotated[Text, Field(min_length=1, max_length=256)]
RowKey = Annotated[Text, Field(min_length=1, max_length=256)]
Remark = Annotated[Text, Field(max_length=4096)]
CleaningRule = Literal["html", "nfkc", "control", "whitespace", "dates", "numbers"]
WHOLE_MODELS = ("full", "freeze")


class AdapterSettings(StrictBody):
    """What is trained."""

    method: Literal["lora", "adalora", "full", "freeze"] | None = None
    rank: int | None = Field(None, ge=1, le=256)
    alpha: Above0 | None = None
    dropout: float | None = Field(None, ge=0, lt=1)
    target_modules: Literal["all-linear"] | list[ModulePath] | None = None
    layers_to_transform: list[Annotated[int, Field(ge=0, le=10_000)]] | None = None
    use_rslora: bool | None = None
    initialisation: Literal["default", "gaussian", "pissa", "olora"] | None = None
    loraplus_ratio: Above0 | None = None
    adalora_initial_rank: Count | None = None
    adalora_warmup_ratio: Fraction | None = None
    adalora_final_ratio: Fraction | None = None
    adalora_interval: Count | None = None
    quantization: Literal["none", "nf4", "int8"] | None = None
    double_quantization: bool | None = None
    dpo_beta: Above0 | None = None
    dpo_loss: Literal["sigmoid", "hinge", "ipo"] | None = None
    dpo_label_smoothing: float | None = Field(None, ge=0, lt=0.5)
    dpo_sft_weight: NotNegative | None = None

    @model_validator(mode="after")
    def _can_be_served(self) -> AdapterSettings:
        if self.method in WHOLE_MODELS:
            message = (
                f"method {self.method!r} makes a whole model, which this server cannot load beside "
                "its base; use lora or adalora here, and `loraloop train` for whole models."
            )
            raise refuse("unsupported_value", message, "method")
        return self


class OptimisationSettings(StrictBody):
    """How the weights move."""

    learning_rate: Above0 | None = None
    epochs: Annotated[float, EPOCHS] | None = None
    max_steps: Count | None = None
    batch_size: Annotated[int, BATCH_SIZE] | None = None
    gradient_accumulation: Count | None = None
    optimizer: Literal["adamw", "adamw_8bit", "paged_adamw_8bit", "adafactor", "sgd"] | None = None
    lr_scheduler: Literal["linear", "cosine", "constant", "plateau"] | None = None
    warmup_ratio: Fraction | None = None
    warmup_steps: int | None = Field(None, ge=0, le=2**31)
    weight_decay: NotNegative | None = None
    max_grad_norm: NotNegative | None = None
    neftune_alpha: Above0 | None = None
    gradient_checkpointing: bool | None = None
    dtype: Literal["auto", "float32", "bfloat16", "float16"] | None = None


class DataSettings(StrictBody):
    """How the rows are prepared."""

    max_length: int | None = Field(None, gt=1, le=2**31)
    long_rows: Literal["truncate", "window"] | None = None
    window_overlap: int | None = Field(None, ge=1, le=2**31)
    max_bad_rows: int | None = Field(None, ge=0)
    clean: bool | list[CleaningRule] | None = None
    redact_personal_data: bool | None = None
    near_duplicates: Literal["remove", "report", "off"] | None = None
    near_duplicate_threshold: float | None = Field(None, gt=0, le=1)
    split: list[Fraction] | None = Field(None, min_length=3, max_length=3)
    group_by: RowKey | None = None
    stratify_by: RowKey | None = None
    sampling: Literal["natural", "inverse_frequency"] | None = None
    sample_by: RowKey | None = None
    packing: bool | None = None
    streaming: bool | None = None


class WatchingSettings(StrictBody):
    """How the run is watched, judged and described."""

    eval_steps: Count | Literal["epoch"] | None = None
    early_stopping_patience: Count | None = None
    early_stopping_unit: Literal["evaluations", "steps", "epochs"] | None = None
    early_stopping_threshold: NotNegative | None = None
    save_steps: Count | None = None
    logging_steps: Count | None = None
    auto_remedy: bool | None = None
    gate: Literal["default", "strict"] | None = None
    license: Annotated[Text, Field(max_length=256)] | None = None
    limits: Remark | None = None


class TrainingSettings(AdapterSettings, OptimisationSettings, DataSettings, WatchingSettings):
    """Training's own keys; what is left out is training's default."""

    def given(self) -> dict[str, Any]:
        """The settings that the client chose; null means something only where training says so."""
        chosen = self.model_dump(include=set(TrainingSettings.model_fields), exclude_unset=True)
        return {
            key: value
            for key, value in chosen.items()
            if value is not None or key == "early_stopping_patience"
        }
