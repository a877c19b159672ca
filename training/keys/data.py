"""Keys of the data: sources, cleaning, split, sampling and the shape of rows."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from training.keys.fields import Fraction, Keys, Positive

CleaningRule = Literal["html", "nfkc", "control", "whitespace", "dates", "numbers"]


class DataSource(Keys):
    """One file, one entry of a ``dataset_info.json``, or one data set of the hub.

    As text: ``rows.jsonl``, ``data/dataset_info.json:identity`` or ``hub:owner/name``.
    """

    path: str
    form: Literal["auto", "alpaca", "sharegpt", "openai", "preference", "kto", "text"] = "auto"
    columns: dict[str, str] = Field(default={})  # LLaMA-Factory's name → the file's
    tags: dict[str, str] = Field(default={})  # role_tag, content_tag, user_tag, … → the file's
    subset: str | None = None  # of a hub data set
    split: str = "train"  # of a hub data set
    num_samples: Positive | None = None  # a seeded sample of this many rows; None: all
    weight: float = Field(default=1.0, gt=0)  # share in the mix: 2 shows each row twice per epoch


class DataKeys(Keys):
    """What is learned from, and how it is prepared."""

    data: tuple[DataSource, ...] = Field(min_length=1)
    validation_data: tuple[DataSource, ...] = ()  # instead of the split's validation part
    test_data: tuple[DataSource, ...] = ()  # instead of the split's test part
    max_length: int | None = Field(default=None, gt=1)  # tokens; None: at most 2048
    long_rows: Literal["truncate", "window"] = "truncate"
    window_overlap: int = Field(default=64, ge=1)  # tokens seen again, never trained twice
    max_bad_rows: int = Field(default=0, ge=0)  # more unusable rows than this stop the run
    clean: (
        bool | tuple[Literal["html", "nfkc", "control", "whitespace", "dates", "numbers"], ...]
    ) = False
    redact_personal_data: bool = False  # phone, id card, bank card, e-mail become placeholders
    near_duplicates: Literal["remove", "report", "off"] = "remove"
    near_duplicate_threshold: float = Field(default=0.9, gt=0, le=1)  # Jaccard of 5-grams
    split: tuple[Fraction, Fraction, Fraction] = (0.8, 0.1, 0.1)  # train, validation, test
    group_by: str | None = None  # rows with an equal value of this key stay in one part
    stratify_by: str | None = None  # each part has this key's values in the same shares
    sampling: Literal["natural", "inverse_frequency"] = "natural"
    sample_by: str | None = None  # the key that inverse_frequency counts; None: the reply
    packing: bool = False  # several short rows in one sequence, each blind to the others
    streaming: bool = False  # rows live on disk: for files larger than memory

    @field_validator("data", "validation_data", "test_data", mode="before")
    @classmethod
    def _text_is_a_path(cls, given: Any) -> Any:
        listed = given if isinstance(given, list | tuple) else [given]
        return [{"path": str(one)} if isinstance(one, str | Path) else one for one in listed]

    @model_validator(mode="after")
    def _parts_fit_together(self) -> DataKeys:
        train, validation, test = self.split
        if abs(train + validation + test - 1) > 1e-6:
            raise ValueError(f"split {list(self.split)} adds up to {train + validation + test:g}")
        if train == 0 or (test == 0 and not self.test_data):
            raise ValueError("split needs a train and a test part: the gate compares on the latter")
        self._check_idle_keys()
        if self.long_rows == "window" and self.window_overlap >= (self.max_length or math.inf):
            raise ValueError(
                f"window_overlap={self.window_overlap} must be below max_length={self.max_length}"
            )
        return self

    def _check_idle_keys(self) -> None:
        """Keys that would do nothing beside the others are mistakes."""
        given = self.model_fields_set
        if "window_overlap" in given and self.long_rows != "window":
            raise ValueError("window_overlap belongs to long_rows=window")
        if self.sample_by is not None and self.sampling != "inverse_frequency":
            raise ValueError("sample_by belongs to sampling=inverse_frequency")
        for key in ("group_by", "stratify_by"):
            if self.streaming and getattr(self, key) is not None:
                raise ValueError(
                    f"{key} needs the rows' values in memory, which streaming does not keep; give "
                    "validation_data and test_data instead"
                )
        if self.streaming and "near_duplicates" in given and self.near_duplicates != "off":
            raise ValueError("streaming looks for exact duplicates only; set near_duplicates=off")
