"""What one training run is asked to do: a frozen record, read once from YAML and ``key=value``.

Knows neither torch nor the base; values that depend on them (``None`` here) are settled in
``training.plan``. Relative paths are relative to the working directory.

Defaults, and why they are these:
- all linear layers, alpha = 2 × rank, no dropout: the setting under which LoRA matches full
  fine-tuning on small sets; attention-only targets lose quality at equal parameters.
- learning rate: 5e-4 × (2000 / hidden_size) ^ 0.78, about ten times full fine-tuning's optimum
  (https://thinkingmachines.ai/blog/lora): 2.9e-4 at hidden size 4096, 2.5e-3 at 256.
- 80/10/10 split, about eight evaluations per run, stop after three without improvement,
  and the best of them is what gets published.
"""

from __future__ import annotations

import difflib
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from artifacts.names import NAME
from training.errors import InvalidConfig

Positive = Annotated[int, Field(gt=0)]
Fraction = Annotated[float, Field(ge=0, le=1)]


class TrainingConfig(BaseModel):
    """One supervised LoRA run. ``None`` means: settled from the base and the data."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    # what to make, from what, and where
    name: str  # the adapter's name in the registry
    data: tuple[Path, ...] = Field(min_length=1)  # alpaca, ShareGPT or OpenAI messages
    base: str | None = None  # folder or hub id; None is the embedded base
    home: Path | None = None  # None: LORALOOP_HOME, else ./.loraloop
    output_dir: Path | None = None  # checkpoints and logs; None: <home>/jobs/train-<name>
    description: str = ""

    # the adapter
    rank: int = Field(default=16, gt=0, le=256)
    alpha: float | None = Field(default=None, gt=0)  # None: 2 × rank
    dropout: float = Field(default=0.0, ge=0, lt=1)
    target_modules: Literal["all-linear"] | tuple[str, ...] = "all-linear"
    use_rslora: bool = False

    # optimisation
    learning_rate: float | None = Field(default=None, gt=0)
    learning_rate_multiplier: float = Field(default=1.0, gt=0)  # of the rate, chosen or settled
    epochs: float = Field(default=3, gt=0)
    max_steps: Positive | None = None  # wins over epochs
    batch_size: Positive = 8
    gradient_accumulation: Positive = 1
    lr_scheduler: Literal["linear", "cosine", "constant"] = "cosine"
    warmup_ratio: Fraction = 0.05
    weight_decay: float = Field(default=0.0, ge=0)
    max_grad_norm: float = Field(default=1.0, ge=0)  # 0 switches clipping off
    gradient_checkpointing: bool = False
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"  # auto: float32 on CPU
    num_threads: Positive | None = None  # None: torch's own choice
    seed: int = Field(default=0, ge=0, lt=2**32)

    # data
    max_length: Annotated[int, Field(gt=1)] | None = None  # tokens; None: at most 2048
    max_bad_rows: int = Field(default=0, ge=0)  # more unusable rows than this stop the run
    split: tuple[Fraction, Fraction, Fraction] = (0.8, 0.1, 0.1)  # train, validation, test

    # evaluation, checkpoints, log lines; all counted in optimizer steps
    eval_steps: Positive | None = None  # None: about eight evaluations per run
    early_stopping_patience: Positive | None = 3  # in EVALUATIONS without improvement; None: off
    early_stopping_threshold: float = Field(default=0.0, ge=0)  # an improvement is larger than this
    save_steps: Positive | None = None  # checkpoints besides the one at every evaluation
    logging_steps: Positive | None = None  # None: about a hundred progress lines per run
    resume: bool | Path = False  # True: from the last checkpoint in output_dir, if there is one

    @field_validator("name")
    @classmethod
    def _name_is_valid(cls, name: str) -> str:
        if not NAME.fullmatch(name):
            raise ValueError(f"an adapter name matches {NAME.pattern}")
        return name

    @field_validator("data", mode="before")
    @classmethod
    def _one_path_is_a_list(cls, data: Any) -> Any:
        return [data] if isinstance(data, str | Path) else data

    @model_validator(mode="after")
    def _parts_fit_together(self) -> TrainingConfig:
        train, validation, test = self.split
        if abs(train + validation + test - 1) > 1e-6:
            raise ValueError(f"split {list(self.split)} adds up to {train + validation + test:g}")
        if train == 0 or test == 0:
            raise ValueError("split needs a train and a test part: the gate compares on the latter")
        if self.target_modules == ():
            raise ValueError("target_modules is empty; list module names or say all-linear")
        return self

    @property
    def scaled_alpha(self) -> float:
        """``alpha`` as it is used."""
        return 2.0 * self.rank if self.alpha is None else self.alpha


def load_config(path: Path, overrides: list[str]) -> TrainingConfig:
    """Reads ``path`` and lays ``key=value`` over it (values are YAML: ``true``, ``[a, b]``, ``3``).

    Raises InvalidConfig naming the key, the value and the remedy.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise InvalidConfig(f"cannot read the configuration {path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise InvalidConfig(f"{path} is not UTF-8 at byte offset {error.start}") from error
    settings = _parse_yaml(text, str(path))
    for override in overrides:
        key, separator, value = override.partition("=")
        if not separator:
            raise InvalidConfig(f"{override!r} is not of the form key=value")
        settings[key.strip()] = _parse_scalar(key, value)
    return parse_config(settings)


def parse_config(settings: dict[str, Any]) -> TrainingConfig:
    """Validates plain values. Raises InvalidConfig naming every key at fault."""
    known = list(TrainingConfig.model_fields)
    for key in settings:
        if key not in known:
            near = difflib.get_close_matches(str(key), known, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"known keys: {', '.join(known)}"
            raise InvalidConfig(f"unknown configuration key {key!r}; {hint}", param=str(key))
    try:
        return TrainingConfig.model_validate(settings)
    except ValidationError as error:
        first = error.errors()[0]["loc"]
        raise InvalidConfig(
            "; ".join(_describe(problem) for problem in error.errors()),
            param=str(first[0]) if first else None,
        ) from error


def _describe(problem: Any) -> str:
    key = ".".join(str(part) for part in problem["loc"][:2])
    if problem["type"] == "missing":
        return f"{key} is missing"
    message = problem["msg"].removeprefix("Value error, ")
    return f"{key}={problem['input']!r}: {message}" if key else message


class _UniqueKeyLoader(yaml.SafeLoader):
    """YAML lets a later duplicate win silently; a duplicate is a mistake here."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        for key_node, _ in node.value:
            key = str(self.construct_object(key_node, deep=True))
            if key in seen:
                line = key_node.start_mark.line + 1
                raise InvalidConfig(f"key {key!r} appears twice (line {line})", param=key)
            seen.add(key)
        return super().construct_mapping(node, deep)


def _parse_yaml(text: str, source: str) -> dict[str, Any]:
    try:
        settings = yaml.load(text, Loader=_UniqueKeyLoader)
    except yaml.YAMLError as error:
        raise InvalidConfig(f"{source} is not valid YAML: {error}") from error
    if settings is None:
        return {}
    if not isinstance(settings, dict):
        raise InvalidConfig(f"{source} holds a {type(settings).__name__}, expected keys and values")
    return settings


def _parse_scalar(key: str, value: str) -> Any:
    try:
        return yaml.safe_load(value)
    except yaml.YAMLError as error:
        raise InvalidConfig(f"{key}={value!r} is not valid YAML", param=key) from error
