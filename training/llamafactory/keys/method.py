"""What is trained, and with which loss (finetuning_args.py)."""

from __future__ import annotations

from typing import Any

from training.llamafactory.entries import Entry, Idle, Refused, Taken, flag, listed, one_of

_STAGES = {"sft": "sft", "dpo": "dpo", "pt": "sft"}
_METHODS = {"lora": "lora", "full": "full", "freeze": "freeze"}
_LOSSES = {"sigmoid": "sigmoid", "hinge": "hinge", "ipo": "ipo"}
_OPTIMISER = "choose one of the optimisers under optim"
_REFERENCE = "the reference of dpo is the base without the adapter"
_PPO = "belongs to stage ppo"
_KTO = "belongs to stage kto"
_OFT = "belongs to finetuning_type oft"
_SWANLAB = "SwanLab reads it from its own environment variables"


def _targets(value: Any) -> str | list[str]:
    names = listed(value)
    return "all-linear" if names == ["all"] else names


METHOD: dict[str, Entry] = {
    "stage": Taken("objective", "`sft`, `dpo`; `pt`: rows are plain text; others are refused",
                   one_of(_STAGES)),
    "finetuning_type": Taken("method", "", one_of(_METHODS)),
    "do_train": Refused("this file trains nothing; see `eval` and `export`", (True,)),
    "pure_bf16": Refused("use bf16: weights that are trained stay float32 here"),
    # lora
    "lora_rank": Taken("rank", "default 8"),
    "lora_alpha": Taken("alpha", "default 2 × rank"),
    "lora_dropout": Taken("dropout"),
    "lora_target": Taken("target_modules", "`all` is `all-linear`", _targets),
    "additional_target": Refused("embeddings and heads beside the adapter cannot be served"),
    "loraplus_lr_ratio": Taken("loraplus_ratio"),
    "loraplus_lr_embedding": Idle("embeddings are not trained"),
    "use_rslora": Taken("use_rslora", "", flag),
    "use_dora": Refused("DoRA cannot be served; use_rslora or pissa_init can"),
    "pissa_init": Taken("initialisation", "`pissa`", lambda v: "pissa" if flag(v) else "default"),
    "pissa_iter": Idle("the singular vectors are exact"),
    "pissa_convert": Idle("what is saved always loads as plain LoRA on the unchanged base"),
    "create_new_adapter": Refused("merge first (`loraloop export`), then train on the result"),
    # freeze
    "freeze_trainable_layers": Taken("trainable_layers", "default 2; negative: the first layers"),
    "freeze_trainable_modules": Refused("a layer is trained whole", (None, "all")),
    "freeze_extra_modules": Refused("decoder layers alone are trained"),
    "use_llama_pro": Refused("layers that are added could not be served"),
    # oft
    "oft_rank": Idle(_OFT),
    "oft_block_size": Idle(_OFT),
    "oft_target": Idle(_OFT),
    "module_dropout": Idle(_OFT),
    # preferences
    "pref_beta": Taken("dpo_beta"),
    "pref_loss": Taken("dpo_loss", "`sigmoid`, `hinge`, `ipo`", one_of(_LOSSES)),
    "pref_ftx": Taken("dpo_sft_weight"),
    "pref_bco_weight": Refused("not among the losses", (None, 0, 0.0)),
    "dpo_label_smoothing": Taken("dpo_label_smoothing"),
    "ld_alpha": Refused("not among the losses"),
    "simpo_gamma": Idle("belongs to pref_loss simpo"),
    "kto_chosen_weight": Idle(_KTO),
    "kto_rejected_weight": Idle(_KTO),
    "ref_model": Refused(_REFERENCE),
    "ref_model_adapters": Refused(_REFERENCE),
    "ref_model_quantization_bit": Refused(_REFERENCE),
    "reward_model": Idle(_PPO),
    "reward_model_adapters": Idle(_PPO),
    "reward_model_quantization_bit": Idle(_PPO),
    "reward_model_type": Idle(_PPO),
    "ppo_buffer_size": Idle(_PPO),
    "ppo_epochs": Idle(_PPO),
    "ppo_score_norm": Idle(_PPO),
    "ppo_target": Idle(_PPO),
    "ppo_whiten_rewards": Idle(_PPO),
    # other ways to learn
    "use_adam_mini": Refused(_OPTIMISER),
    "use_muon": Refused(_OPTIMISER),
    "use_galore": Refused(_OPTIMISER),
    "use_apollo": Refused(_OPTIMISER),
    "use_badam": Refused(_OPTIMISER),
    "use_mca": Refused("one process on one device trains here"),
    "use_dft_loss": Refused("the loss is the negative log-likelihood of the replies"),
    "use_eaft_loss": Refused("the loss is the negative log-likelihood of the replies"),
    "use_asft_loss": Refused("the loss is the negative log-likelihood of the replies"),
    "disable_shuffling": Refused("the order of rows is drawn by seed and epoch"),
    "freeze_vision_tower": Idle("text only"),
    "freeze_multi_modal_projector": Idle("text only"),
    "freeze_language_model": Refused("text only: nothing would be left to train"),
    # watching
    "early_stopping_steps": Taken(
        "early_stopping_patience", "evaluations without improvement, as theirs; none by default"
    ),
    "compute_accuracy": Idle("`loraloop eval` measures accuracy"),
    "plot_loss": Idle("the losses are always drawn"),
    "include_effective_tokens_per_second": Idle("tokens/s are always told"),
    "use_swanlab": Taken("trackers", "adds `swanlab`", None),
    "swanlab_project": Idle(_SWANLAB),
    "swanlab_workspace": Idle(_SWANLAB),
    "swanlab_run_name": Idle("runs are called after the adapter"),
    "swanlab_mode": Idle(_SWANLAB),
    "swanlab_api_key": Refused("put it into the environment (SWANLAB_API_KEY)"),
    "swanlab_logdir": Idle(_SWANLAB),
    "swanlab_lark_webhook_url": Refused("SwanLab's own settings send notices"),
    "swanlab_lark_secret": Refused("SwanLab's own settings send notices"),
}  # fmt: skip
for _prefix, _names in {
    "galore": ("target", "rank", "update_interval", "scale", "proj_type", "layerwise"),
    "apollo": ("target", "rank", "update_interval", "scale", "proj", "proj_type", "scale_type",
               "layerwise", "scale_front"),
    "badam": ("mode", "start_block", "switch_mode", "switch_interval", "update_ratio", "mask_mode",
              "verbose"),
}.items():  # fmt: skip
    METHOD |= {f"{_prefix}_{name}": Idle(f"belongs to use_{_prefix}") for name in _names}
