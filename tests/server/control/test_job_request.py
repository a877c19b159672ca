"""What a client may set is what training takes, with the same limits."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from server.jobs.request import CreateJob, TrainAdapter, TrainingSettings, job_of
from training.config import TrainingConfig, parse_config

# The operator's, the server's own, and what other fields of a job say.
NOT_THE_CLIENTS = {
    *("base", "data", "description", "home", "name", "num_threads", "output_dir", "resume"),
    *("seed", "learning_rate_multiplier"),
}
VALID: dict[str, list[Any]] = {
    "rank": [1, 256],
    "alpha": [0.5, 64],
    "dropout": [0, 0.99],
    "target_modules": ["all-linear", ["q_proj"]],
    "use_rslora": [True, False],
    "learning_rate": [1e-6, 1],
    "epochs": [0.1, 10_000],
    "max_steps": [1, 10**6],
    "batch_size": [1, 65_536],
    "gradient_accumulation": [1, 64],
    "lr_scheduler": ["linear", "cosine", "constant"],
    "warmup_ratio": [0, 1],
    "weight_decay": [0, 0.1],
    "max_grad_norm": [0, 10],
    "gradient_checkpointing": [True],
    "dtype": ["auto", "float32", "bfloat16"],
    "max_length": [2, 4096],
    "max_bad_rows": [0, 10],
    "split": [[0.8, 0.1, 0.1]],
    "eval_steps": [1, 100],
    "early_stopping_patience": [1, 10, None],
    "early_stopping_threshold": [0, 0.1],
    "save_steps": [1, 100],
    "logging_steps": [1, 100],
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
}


def test_every_key_of_training_is_the_clients_or_named_as_not() -> None:
    theirs, ours = set(TrainingConfig.model_fields), set(TrainingSettings.model_fields)
    assert ours == set(VALID)
    assert ours <= theirs
    assert theirs - ours <= NOT_THE_CLIENTS


@pytest.mark.parametrize("key", VALID)
def test_what_we_take_training_takes(key: str) -> None:
    for value in VALID[key]:
        given = TrainingSettings.model_validate({key: value}).given()
        assert given == {key: value}
        parse_config({"name": "shop", "data": "a.jsonl", **given})


@pytest.mark.parametrize("key", INVALID)
def test_what_training_refuses_we_refuse_at_once(key: str) -> None:
    with pytest.raises(ValidationError):
        TrainingSettings.model_validate({key: INVALID[key]})


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
