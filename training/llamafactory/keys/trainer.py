"""The loop: transformers' TrainingArguments, as LLaMA-Factory's files use them."""

from __future__ import annotations

from typing import Any

from training.llamafactory.entries import Entry, Idle, Refused, Taken, flag, one_of

_ONE_DEVICE = (
    "one process on one device trains here; multiply gradient_accumulation_steps by the number of "
    "devices instead"
)
_HUB = "publish the folder yourself once it is trained"
_LOADER = "rows lie in memory; no worker is needed"
_OPTIMIZERS = {
    "adamw_torch": "adamw",
    "adamw_torch_fused": "adamw",
    "adamw_hf": "adamw",
    "adamw_8bit": "adamw_8bit",
    "adamw_bnb_8bit": "adamw_8bit",
    "paged_adamw_8bit": "paged_adamw_8bit",
    "adafactor": "adafactor",
    "sgd": "sgd",
}
_SCHEDULERS = {
    "linear": "linear",
    "cosine": "cosine",
    "constant": "constant",
    "constant_with_warmup": "constant",
    "reduce_lr_on_plateau": "plateau",
}


def _steps(value: Any) -> int | None:
    """transformers writes -1 for: not limited."""
    return None if value == -1 else value


TRAINER: dict[str, Entry] = {
    "output_dir": Taken(
        "output_dir",
        "checkpoints, logs and, at the end, the adapter; its last parts are the adapter's `name`",
        None,
    ),
    "overwrite_output_dir": Taken(
        "resume", "`true` starts over; `false` goes on from the last checkpoint there", None
    ),
    "resume_from_checkpoint": Taken("resume", "", None),
    # optimisation
    "per_device_train_batch_size": Taken("batch_size", "default 8"),
    "gradient_accumulation_steps": Taken("gradient_accumulation"),
    "learning_rate": Taken("learning_rate", "default 5e-5"),
    "num_train_epochs": Taken("epochs", "default 3"),
    "max_steps": Taken("max_steps", "", _steps),
    "lr_scheduler_type": Taken("lr_scheduler", "default `linear`", one_of(_SCHEDULERS)),
    "lr_scheduler_kwargs": Refused("schedules have no further settings", (None, "", {})),
    "warmup_ratio": Taken("warmup_ratio", "default 0; with `constant` there is none", None),
    "warmup_steps": Taken("warmup_steps", "0 leaves it to warmup_ratio", None),
    "optim": Taken("optimizer", "default `adamw_torch`", one_of(_OPTIMIZERS)),
    "optim_args": Refused("optimisers have no further settings"),
    "adam_beta1": Refused("0.9", (None, 0.9)),
    "adam_beta2": Refused("0.999", (None, 0.999)),
    "adam_epsilon": Refused("1e-8", (None, 1e-8)),
    "weight_decay": Taken("weight_decay"),
    "max_grad_norm": Taken("max_grad_norm"),
    "neftune_noise_alpha": Taken("neftune_alpha"),
    "label_smoothing_factor": Refused("the loss is the plain one", (None, 0, 0.0)),
    "gradient_checkpointing": Taken("gradient_checkpointing", "", flag),
    "gradient_checkpointing_kwargs": Idle("checkpointing is never re-entrant here"),
    "auto_find_batch_size": Taken("auto_remedy", "half the batch where memory runs out", flag),
    "bf16": Taken("dtype", "`bfloat16`", None),
    "fp16": Taken("dtype", "`float16`", None),
    "tf32": Idle("the machine's default stands"),
    "seed": Taken("seed", "default 42"),
    "data_seed": Refused("one seed decides everything: use seed"),
    "full_determinism": Idle("a run on a CPU is always repeatable"),
    # watching
    "do_eval": Idle("the file's evaluation keys decide"),
    "do_predict": Refused("`loraloop eval` generates answers and measures them"),
    "predict_with_generate": Refused("`loraloop eval` generates answers and measures them"),
    "eval_strategy": Taken("eval_steps", "`no`, `steps` or `epoch`", None),
    "evaluation_strategy": Taken("eval_steps", "the old name of eval_strategy", None),
    "eval_steps": Taken("eval_steps", "default: as logging_steps, as theirs", None),
    "eval_delay": Refused("evaluation begins at once", (None, 0)),
    "eval_on_start": Idle("the base is always measured, at the end"),
    "eval_accumulation_steps": Idle("losses are summed on the way"),
    "per_device_eval_batch_size": Idle("the loss per token does not depend on the batch"),
    "batch_eval_metrics": Idle("losses are summed on the way"),
    "bf16_full_eval": Idle("evaluation computes as training does"),
    "fp16_full_eval": Idle("evaluation computes as training does"),
    "load_best_model_at_end": Idle("with validation the best evaluation is what is published"),
    "metric_for_best_model": Refused(
        "the validation loss decides", (None, "loss", "eval_loss")
    ),
    "greater_is_better": Refused("the validation loss decides"),
    "save_strategy": Taken("save_steps", "`steps`; else checkpoints at evaluations alone", None),
    "save_steps": Taken("save_steps", "", None),
    "save_total_limit": Idle("the last and the best checkpoint are kept, until publication"),
    "save_only_model": Idle("checkpoints are whole, so that every run can be resumed"),
    "save_safetensors": Idle("weights are always safetensors"),
    "save_on_each_node": Idle("there is one node"),
    "logging_steps": Taken("logging_steps"),
    "logging_dir": Idle("logs lie in <output_dir>/logs"),
    "logging_strategy": Idle("progress is told every logging_steps"),
    "logging_first_step": Idle("progress is told every logging_steps"),
    "logging_nan_inf_filter": Idle("a loss that is not a number stops the run"),
    "log_level": Idle("the command's own"),
    "report_to": Taken("trackers", "`none`, or names of trackers", None),
    "run_name": Idle("runs are called after the adapter"),
    "disable_tqdm": Idle("the bar is this command's own: `--progress json` switches it off"),
    "include_num_input_tokens_seen": Idle("tokens/s are always told"),
    "include_tokens_per_second": Idle("tokens/s are always told"),
    "skip_memory_metrics": Idle("memory is always told"),
    # the machine
    "dataloader_num_workers": Idle(_LOADER),
    "dataloader_pin_memory": Idle(_LOADER),
    "dataloader_persistent_workers": Idle(_LOADER),
    "dataloader_prefetch_factor": Idle(_LOADER),
    "dataloader_drop_last": Refused("every row counts"),
    "group_by_length": Idle("rows of like length always meet in a batch"),
    "remove_unused_columns": Idle("rows keep what the loss needs"),
    "torch_compile": Idle("another way to the same arithmetic"),
    "torch_empty_cache_steps": Idle("another way to the same arithmetic"),
    "average_tokens_across_devices": Idle("there is one device"),
    "ddp_timeout": Idle("there is one process"),
    "ddp_find_unused_parameters": Idle("there is one process"),
    "ddp_backend": Idle("there is one process"),
    "local_rank": Idle("there is one process"),
    "use_cpu": Refused("the device is the machine's; CUDA_VISIBLE_DEVICES= hides a GPU"),
    "deepspeed": Refused(_ONE_DEVICE),
    "fsdp": Refused(_ONE_DEVICE, (None, False, "", [])),
    "fsdp_config": Refused(_ONE_DEVICE),
    "accelerator_config": Idle("there is one process"),
    "ray_run_name": Idle("there is one process"),
    "ray_storage_path": Idle("there is one process"),
    "ray_storage_filesystem": Idle("there is one process"),
    "ray_num_workers": Refused(_ONE_DEVICE, (None, 1)),
    "resources_per_worker": Idle("there is one process"),
    "placement_strategy": Idle("there is one process"),
    "ray_init_kwargs": Idle("there is one process"),
    "push_to_hub": Refused(_HUB),
    "hub_model_id": Idle("belongs to push_to_hub"),
    "hub_private_repo": Idle("belongs to push_to_hub"),
    "hub_strategy": Idle("belongs to push_to_hub"),
    "hub_token": Refused("put it into the environment (HF_TOKEN)"),
}  # fmt: skip
