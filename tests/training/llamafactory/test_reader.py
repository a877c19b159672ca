"""What LLaMA-Factory's keys become, one property at a time."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from training.config import load_config, parse_config, read_settings
from training.errors import InvalidConfig
from training.llamafactory.entries import Idle, Refused
from training.llamafactory.export_file import read_export
from training.llamafactory.keys import KEYS
from training.llamafactory.keys.export import EXPORT
from training.llamafactory.reader import translate

LEAST = {"model_name_or_path": "base", "dataset": "a", "output_dir": "saves/base/lora/sft"}


def settings_of(**theirs: Any) -> dict[str, Any]:
    settings, _ = translate({**LEAST, **theirs}, {})
    parse_config(settings)
    return settings


def test_what_is_not_said_is_as_they_have_it() -> None:
    config = parse_config(settings_of())
    assert (config.learning_rate, config.epochs, config.rank) == (5e-5, 3, 8)
    assert (config.scaled_alpha, config.batch_size, config.seed) == (16, 8, 42)
    assert (config.lr_scheduler, config.warmup_ratio) == ("linear", 0)
    assert config.early_stopping_patience is None
    assert config.gradient_checkpointing
    assert config.resume is True
    assert config.name == "base-lora-sft"


@pytest.mark.parametrize(
    ("theirs", "ours"),
    [
        ({"lora_target": "all"}, {"target_modules": "all-linear"}),
        ({"lora_target": "q_proj,v_proj"}, {"target_modules": ["q_proj", "v_proj"]}),
        ({"pissa_init": True}, {"initialisation": "pissa"}),
        ({"loraplus_lr_ratio": 16.0}, {"loraplus_ratio": 16.0}),
        ({"finetuning_type": "freeze", "freeze_trainable_layers": -1}, {"trainable_layers": -1}),
        ({"quantization_bit": 4}, {"quantization": "nf4"}),
        ({"quantization_bit": 8, "quantization_method": "bnb"}, {"quantization": "int8"}),
        ({"stage": "dpo", "pref_beta": 0.3}, {"objective": "dpo", "dpo_beta": 0.3}),
        ({"stage": "dpo", "pref_loss": "ipo"}, {"dpo_loss": "ipo"}),
        ({"stage": "dpo", "pref_ftx": 0.5}, {"dpo_sft_weight": 0.5, "objective": "dpo"}),
        ({"max_steps": -1}, {"max_steps": None}),
        ({"lr_scheduler_type": "constant", "warmup_ratio": 0.1}, {"warmup_ratio": 0.0}),
        ({"lr_scheduler_type": "constant_with_warmup", "warmup_steps": 9}, {"warmup_steps": 9}),
        ({"optim": "adamw_torch_fused"}, {"optimizer": "adamw"}),
        ({"bf16": True}, {"dtype": "bfloat16"}),
        ({"cutoff_len": 1024}, {"max_length": 1024}),
        ({"neat_packing": True}, {"packing": True}),
        ({"report_to": "none"}, {"trackers": []}),
        ({"report_to": "wandb", "use_swanlab": True}, {"trackers": ["wandb", "swanlab"]}),
        ({"overwrite_output_dir": True}, {"resume": "overwrite"}),
        ({"resume_from_checkpoint": "saves/x/checkpoint-5"}, {"resume": "saves/x/checkpoint-5"}),
        ({"auto_find_batch_size": True}, {"auto_remedy": True}),
        ({"early_stopping_steps": 3}, {"early_stopping_patience": 3}),
        ({"save_strategy": "epoch"}, {}),
        ({"eval_strategy": False}, {"split": [0.95, 0.0, 0.05]}),  # YAML 1.1's word for no
        ({"val_size": 0.1}, {"split": [0.9, 0.0, 0.1]}),
        ({"val_size": "1e-1"}, {"split": [0.9, 0.0, 0.1]}),
        (
            {"val_size": 0.1, "eval_strategy": "steps", "eval_steps": 50},
            {"split": [0.85, 0.1, 0.05], "eval_steps": 50},
        ),
        (
            {"eval_dataset": "b", "evaluation_strategy": "epoch"},
            {"split": [0.95, 0.0, 0.05], "eval_steps": "epoch",
             "validation_data": [{"path": "data/dataset_info.json:b"}]},
        ),
        (
            {"eval_dataset": "b", "max_samples": 5},
            {"split": [1.0, 0.0, 0.0],
             "test_data": [{"path": "data/dataset_info.json:b", "num_samples": 5}]},
        ),
        (
            {"dataset": "a,b", "dataset_dir": "d", "max_samples": 7},
            {"data": [{"path": f"d/dataset_info.json:{n}", "num_samples": 7} for n in "ab"]},
        ),
        ({"dataset": "o/n", "dataset_dir": "ONLINE"}, {"data": [{"path": "hub:o/n"}]}),
        (
            {"stage": "pt"},
            {"objective": "sft", "packing": True, "long_rows": "window",
             "data": [{"path": "data/dataset_info.json:a", "form": "text"}]},
        ),
    ],
)  # fmt: skip
def test_a_key_becomes_ours(theirs: dict[str, Any], ours: dict[str, Any]) -> None:
    found = settings_of(**theirs)
    assert {key: found.get(key) for key in ours} == ours


@pytest.mark.parametrize(
    ("theirs", "key", "says"),
    [
        ({"stage": "ppo"}, "stage", "trained here: sft, dpo, pt"),
        ({"stage": "kto"}, "stage", "'kto'"),
        ({"finetuning_type": "oft"}, "finetuning_type", "lora, full, freeze"),
        ({"pref_loss": "orpo", "stage": "dpo"}, "pref_loss", "sigmoid, hinge, ipo"),
        ({"use_dora": True}, "use_dora", "DoRA cannot be served"),
        ({"additional_target": "embed_tokens"}, "additional_target", "cannot be served"),
        ({"deepspeed": "ds_z3.json"}, "deepspeed", "gradient_accumulation_steps"),
        ({"quantization_bit": 3}, "quantization_bit", "4, 8"),
        ({"lr_scheduler_type": "polynomial"}, "lr_scheduler_type", "cosine"),
        ({"optim": "lion_8bit"}, "optim", "adamw_torch"),
        ({"train_on_prompt": True}, "train_on_prompt", "the replies alone"),
        ({"adapter_name_or_path": "a,b"}, "adapter_name_or_path", "merge them first"),
        ({"bf16": True, "fp16": True}, "fp16", "choose one"),
        ({"eval_strategy": "steps"}, "eval_strategy", "val_size or eval_dataset"),
        ({"eval_strategy": "steps", "val_size": "some"}, "val_size", "not a number"),
        ({"eval_dataset": "b", "val_size": 0.1}, "val_size", "either"),
        ({"interleave_probs": "0.5,0.5"}, "interleave_probs", "mix_strategy"),
        ({"report_to": "comet_ml"}, "report_to", "tensorboard"),
        ({"dataset": None}, "dataset", "missing"),
        ({"output_dir": None}, "output_dir", "missing"),
        ({"lora_rnk": 8}, "lora_rnk", "did you mean 'lora_rank'"),
        ({"export_dir": "out"}, "export_dir", "loraloop export"),
        ({"adam_beta2": 0.95}, "adam_beta2", "0.999"),
        ({"do_train": False}, "do_train", "trains nothing"),
        ({"hf_hub_token": "secret"}, "hf_hub_token", "HF_TOKEN"),
    ],
)
def test_what_cannot_be_honoured_stops_the_run(theirs: dict[str, Any], key: str, says: str) -> None:
    with pytest.raises(InvalidConfig, match=says) as caught:
        translate({**LEAST, **theirs}, {})
    assert caught.value.param == key
    assert key in str(caught.value)


def test_every_key_is_taken_noted_or_refused() -> None:
    """A value that asks for something is never passed over in silence."""
    for key, entry in KEYS.items():
        if key in EXPORT:  # see below
            continue
        if isinstance(entry, Refused):
            with pytest.raises(InvalidConfig, match=key):
                translate({**LEAST, key: "something"}, {})
            for neutral in entry.neutral:
                translate({**LEAST, key: neutral}, {})
        elif isinstance(entry, Idle):
            _, notes = translate({**LEAST, key: "something"}, {})
            assert f"{key}: {entry.reason}" in notes


def test_adapters_decide_what_they_are_continued_with() -> None:
    found = settings_of(adapter_name_or_path="shop@1", lora_rank=64, lora_target="all")
    assert found["start_from"] == "shop@1"
    assert not found.keys() & {"rank", "target_modules", "alpha"}


def test_our_own_keys_behind_the_file_win(tmp_path: Path) -> None:
    path = tmp_path / "theirs.yaml"
    path.write_text(yaml.safe_dump({**LEAST, "lora_rank": 8}))
    config = load_config(path, ["name=shop", "lora_rank=4", "split=[0.5, 0.25, 0.25]", "alpha=3"])
    assert (config.name, config.rank, config.alpha) == ("shop", 4, 3)
    assert config.split == (0.5, 0.25, 0.25)
    _, notes = read_settings(path, ["test_data=mine.jsonl", "split=[1, 0, 0]"])
    assert not any("held back" in note for note in notes)


def counted(folder: Path, **sizes: int) -> str:
    """A folder of data sets with so many rows."""
    for name, size in sizes.items():
        rows = [{"instruction": "a", "output": str(n)} for n in range(size)]
        (folder / f"{name}.json").write_text(json.dumps(rows))
    info = {name: {"file_name": f"{name}.json"} for name in sizes}
    (folder / "dataset_info.json").write_text(json.dumps({**info, "far": {"hf_hub_url": "o/n"}}))
    return str(folder)


@pytest.mark.parametrize(
    ("strategy", "weights"), [("interleave_under", [0.25, 1]), ("interleave_over", [1, 4])]
)
def test_interleaving_becomes_weights(tmp_path: Path, strategy: str, weights: list[float]) -> None:
    """Shares 1:1 of 40 and 10 rows: until the short one is used up, or the long one is."""
    folder = counted(tmp_path, long=40, short=10)
    found = settings_of(
        dataset="long,short", dataset_dir=folder, mix_strategy=strategy, interleave_probs="0.5,0.5"
    )
    assert [source.get("weight", 1) for source in found["data"]] == weights


def test_numbers_of_rows_become_shares(tmp_path: Path) -> None:
    folder = counted(tmp_path, long=40, short=10)
    found = settings_of(dataset="long,short", dataset_dir=folder, val_size=5)
    assert found["split"] == pytest.approx([0.9, 0, 0.1])
    with pytest.raises(InvalidConfig, match="leaves nothing"):
        settings_of(dataset="short", dataset_dir=folder, val_size=10)
    with pytest.raises(InvalidConfig, match="give val_size as a share"):
        settings_of(dataset="far", dataset_dir=folder, val_size=5)


MERGE = {"model_name_or_path": "base", "adapter_name_or_path": "shop@1", "export_dir": "out"}


def merge_file(folder: Path, **changes: Any) -> Path:
    path = folder / "merge.yaml"
    path.write_text(yaml.safe_dump({**MERGE, "template": "qwen", **changes}))
    return path


def test_a_merge_file(tmp_path: Path) -> None:
    asked = read_export(merge_file(tmp_path, export_size=2, export_legacy_format=False))
    assert (asked.base, asked.adapter, asked.output) == ("base", "shop@1", Path("out"))
    assert asked.shard_gb == 2
    assert [note.partition(":")[0] for note in asked.notes] == ["template"]


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"adapter_name_or_path": None}, "adapter_name_or_path is missing"),
        ({"adapter_name_or_path": "a,b"}, "names 2 adapters"),
        ({"quantization_bit": 4}, "not into a quantised one"),
        ({"export_legacy_format": True}, "always safetensors"),
        ({"export_quantization_bit": 4}, "leave it out"),
        ({"export_size": 0}, "no number of GB"),
        ({"export_dri": "x"}, "did you mean 'export_dir'"),
    ],
)
def test_a_merge_file_that_cannot_be_honoured(
    tmp_path: Path, changes: dict[str, Any], says: str
) -> None:
    with pytest.raises(InvalidConfig, match=says):
        read_export(merge_file(tmp_path, **changes))
