"""What a client may set is what training takes, with the same limits."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from artifacts.errors import InvalidInput
from server.jobs.request import (
    CreateJob,
    DpoHyperparameters,
    Hyperparameters,
    TrainAdapter,
    job_of,
)
from server.jobs.settings import TrainingSettings
from training.config import TrainingConfig, parse_config
from training.errors import InvalidConfig

OPERATORS = {  # places, threads and accounts of this machine
    *("base", "home", "output_dir", "num_threads", "trackers", "suite", "kept_checkpoints"),
    "copy_to_output_dir",
}
SERVERS = {"description", "resume"}
ELSEWHERE = {  # what other fields of a job say
    *("data", "validation_data", "test_data", "name", "seed", "learning_rate_multiplier"),
    *("objective", "start_from"),
}
MAKES_WHOLE_MODELS = {"trainable_layers"}  # of freeze: such a model is not served
NOT_THE_CLIENTS = OPERATORS | SERVERS | ELSEWHERE | MAKES_WHOLE_MODELS
VALID: dict[str, list[Any]] = {
    "rank": [1, 256],
    "alpha": [0.5, 64],
    "dropout": [0, 0.99],
    "target_modules": ["all-linear", ["q_proj"]],
    "use_rslora": [True, False],
    "method": ["lora", "adalora"],
    "layers_to_transform": [[0, 1]],
    "initialisation": ["default", "gaussian", "pissa", "olora"],
    "loraplus_ratio": [0.5, 16],
    "adalora_initial_rank": [2, 24],
    "adalora_warmup_ratio": [0, 0.5],
    "adalora_final_ratio": [0, 0.5],
    "adalora_interval": [1, 100],
    "quantization": ["none", "nf4", "int8"],
    "double_quantization": [True, False],
    "dpo_beta": [0.01, 1],
    "dpo_loss": ["sigmoid", "hinge", "ipo"],
    "dpo_label_smoothing": [0, 0.49],
    "dpo_sft_weight": [0, 1],
    "learning_rate": [1e-6, 1],
    "epochs": [0.1, 10_000],
    "max_steps": [1, 10**6],
    "batch_size": [1, 65_536],
    "gradient_accumulation": [1, 64],
    "optimizer": ["adamw", "adamw_8bit", "paged_adamw_8bit", "adafactor", "sgd"],
    "lr_scheduler": ["linear", "cosine", "constant", "plateau"],
    "warmup_ratio": [0, 1],
    "warmup_steps": [0, 100],
    "neftune_alpha": [0.1, 5],
    "weight_decay": [0, 0.1],
    "max_grad_norm": [0, 10],
    "gradient_checkpointing": [True],
    "dtype": ["auto", "float32", "bfloat16", "float16"],
    "max_length": [2, 4096],
    "long_rows": ["truncate", "window"],
    "window_overlap": [1, 64],
    "max_bad_rows": [0, 10],
    "clean": [True, False, ["html", "nfkc", "control", "whitespace", "dates", "numbers"]],
    "redact_personal_data": [True, False],
    "near_duplicates": ["remove", "report", "off"],
    "near_duplicate_threshold": [0.1, 1],
    "split": [[0.8, 0.1, 0.1]],
    "group_by": ["customer"],
    "stratify_by": ["label"],
    "sampling": ["natural", "inverse_frequency"],
    "sample_by": ["label"],
    "packing": [True, False],
    "streaming": [True, False],
    "eval_steps": [1, 100, "epoch"],
    "early_stopping_patience": [1, 10, None],
    "early_stopping_unit": ["evaluations", "steps", "epochs"],
    "early_stopping_threshold": [0, 0.1],
    "save_steps": [1, 100],
    "logging_steps": [1, 100],
    "auto_remedy": [True, False],
    "gate": ["default", "strict"],
    "license": ["CC-BY-4.0"],
    "limits": ["not for legal advice"],
}
# Keys that mean something only beside another.
NEEDS: dict[str, dict[str, Any]] = {
    **{key: {"method": "adalora", "rank": 1} for key in VALID if key.startswith("adalora_")},
    **{key: {"objective": "dpo"} for key in VALID if key.startswith("dpo_")},
    "double_quantization": {"quantization": "nf4"},
    "window_overlap": {"long_rows": "window"},
    "sample_by": {"sampling": "inverse_frequency"},
}
INVALID: dict[str, Any] = {
    "rank": 0,
    "alpha": 0,
    "dropout": 1,
    "target_modules": "some",
    "learning_rate": 0,
    "epochs": 0,
    "max_steps": 0,
    "batch_size": 0,
    "gradient_accumulation": 0,
    "lr_scheduler": "step",
    "warmup_ratio": 1.1,
    "weight_decay": -0.1,
    "max_grad_norm": -1,
    "dtype": "int8",
    "max_length": 1,
    "max_bad_rows": -1,
    "split": [0.5, 0.5],
    "eval_steps": 0,
    "early_stopping_patience": 0,
    "early_stopping_threshold": -1,
    "save_steps": 0,
    "logging_steps": 0,
    "method": "loha",
    "layers_to_transform": ["first"],
    "initialisation": "zeros",
    "loraplus_ratio": 0,
    "adalora_initial_rank": 0,
    "adalora_warmup_ratio": 1.1,
    "adalora_final_ratio": -0.1,
    "adalora_interval": 0,
    "quantization": "fp4",
    "dpo_beta": 0,
    "dpo_loss": "kto",
    "dpo_label_smoothing": 0.5,
    "dpo_sft_weight": -1,
    "optimizer": "lion",
    "warmup_steps": -1,
    "neftune_alpha": 0,
    "long_rows": "drop",
    "window_overlap": 0,
    "clean": ["punctuation"],
    "near_duplicates": "keep",
    "near_duplicate_threshold": 0,
    "sampling": "random",
    "early_stopping_unit": "hours",
    "gate": "none",
}


def test_every_key_of_training_is_the_clients_or_named_as_not() -> None:
    theirs, ours = set(TrainingConfig.model_fields), set(TrainingSettings.model_fields)
    assert ours == set(VALID)
    assert ours <= theirs
    assert theirs - ours == NOT_THE_CLIENTS


@pytest.mark.parametrize("key", VALID)
def test_what_we_take_training_takes(key: str) -> None:
    for value in VALID[key]:
        given = TrainingSettings.model_validate({key: value}).given()
        assert given == {key: value}
        parse_config({"name": "shop", "data": "a.jsonl", **NEEDS.get(key, {}), **given})


@pytest.mark.parametrize("key", INVALID)
def test_what_training_refuses_we_refuse_at_once(key: str) -> None:
    with pytest.raises(ValidationError):
        TrainingSettings.model_validate({key: INVALID[key]})
    with pytest.raises(InvalidConfig, match=key):
        parse_config({"name": "shop", "data": "a.jsonl", key: INVALID[key]})


def test_null_means_not_given() -> None:
    body = CreateJob.model_validate(
        {
            "model": "base",
            "training_file": "file-1",
            "validation_file": None,
            "suffix": None,
            "seed": None,
            "metadata": None,
            "hyperparameters": {"n_epochs": None, "batch_size": "auto"},
            "integrations": [],
            "loraloop": {"rank": None},
        }
    )
    job = job_of(body, "base", 64)
    assert job.settings == {}
    assert job.name.startswith("tuned-")
    assert 0 <= job.seed < 2**31


def test_the_three_hyperparameters_become_trainings_keys() -> None:
    body = CreateJob.model_validate(
        {
            "model": "base",
            "training_file": "file-1",
            "hyperparameters": {
                "n_epochs": 2,
                "batch_size": 4,
                "learning_rate_multiplier": 0.5,
            },
        }
    )
    job = job_of(body, "base", 64)
    assert job.settings == {"epochs": 2, "batch_size": 4, "learning_rate_multiplier": 0.5}
    parse_config({"name": "shop", "data": "a.jsonl", **job.settings})


def test_the_admin_body_takes_the_same_settings() -> None:
    body = TrainAdapter.model_validate({"name": "shop", "file_id": "file-1", "rank": 8})
    assert body.given() == {"rank": 8}


def test_whole_models_are_refused_with_the_way_to_make_them() -> None:
    for method in ("full", "freeze"):
        with pytest.raises(ValidationError, match="loraloop train"):
            TrainingSettings.model_validate({"method": method})


def test_the_page_says_what_every_field_does() -> None:
    page = (Path(__file__).resolve().parents[3] / "docs" / "fine-tuning.md").read_text()
    for field in CreateJob.model_fields:
        assert f"`{field}`" in page, field
    for model in (Hyperparameters, DpoHyperparameters):
        assert all(f"`{field}`" in page for field in model.model_fields)


def create(**fields: Any) -> dict[str, Any]:
    body = {"model": "base", "training_file": "file-1", **fields}
    job = job_of(CreateJob.model_validate(body), "base", 64)
    parse_config({"name": "shop", "data": "a.jsonl", **job.settings})
    return job.settings


def test_dpo_brings_its_objective_and_its_beta() -> None:
    hyperparameters = {"n_epochs": 2, "beta": 0.3, "learning_rate_multiplier": "auto"}
    method = {"type": "dpo", "dpo": {"hyperparameters": hyperparameters}}
    assert create(method=method) == {"objective": "dpo", "epochs": 2, "dpo_beta": 0.3}
    assert create(method={"type": "dpo"}, loraloop={"dpo_loss": "ipo"}) == {
        "objective": "dpo",
        "dpo_loss": "ipo",
    }
    with pytest.raises(InvalidInput, match="dpo_beta"):
        create(method=method, loraloop={"dpo_beta": 0.1})
    with pytest.raises(InvalidInput, match="dpo_loss"):
        create(loraloop={"dpo_loss": "ipo"})


def test_hyperparameters_stand_in_one_place() -> None:
    given = {"hyperparameters": {"n_epochs": 2}}
    with pytest.raises(ValidationError, match=r"inside method\.dpo"):
        create(**given, method={"type": "dpo"})
    with pytest.raises(ValidationError, match=r"inside method\.supervised"):
        create(**given, method={"type": "supervised", "supervised": given})
    with pytest.raises(ValidationError, match="leave one out"):
        create(method={"type": "dpo", "supervised": given})
    assert create(**given, method={"type": "supervised"}) == {"epochs": 2}
