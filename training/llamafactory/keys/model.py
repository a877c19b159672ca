"""The base, how it is loaded and quantised (model_args.py)."""

from __future__ import annotations

from training.llamafactory.entries import Entry, Idle, Refused, Taken, flag, one_of

_TOKENS = "the tokenizer and the vocabulary of a base are never changed, so that adapters serve"
_HUB = "put it into the environment (HF_TOKEN), not into a file that is kept with the run"
_IMAGES = "text only"
_BITS = {4: "nf4", 8: "int8"}

MODEL: dict[str, Entry] = {
    "model_name_or_path": Taken("base", "a folder or a hub id", str),
    "adapter_name_or_path": Taken(
        "start_from",
        "a PEFT folder or `name@version`; one, on whose weights training goes on",
        None,
    ),
    "adapter_folder": Refused("write the whole path into adapter_name_or_path"),
    "cache_dir": Idle("downloads go where HF_HOME says"),
    "use_fast_tokenizer": Idle("the tokenizer.json of the base is read as it is"),
    "resize_vocab": Refused(_TOKENS),
    "split_special_tokens": Refused("special tokens are never split, as at serving"),
    "add_tokens": Refused(_TOKENS),
    "add_special_tokens": Refused(_TOKENS),
    "new_special_tokens_config": Refused(_TOKENS),
    "init_special_tokens": Idle("no tokens are added"),
    "model_revision": Refused("download the revision and give its folder", (None, "main")),
    "low_cpu_mem_usage": Idle("weights are always mapped from the files"),
    "rope_scaling": Refused("the base's own config.json decides, as at serving"),
    "flash_attn": Idle("PyTorch picks the attention kernel; the results are the same"),
    "shift_attn": Refused("an adapter for another attention could not be served"),
    "mixture_of_depths": Refused("such a model could not be served"),
    "use_unsloth": Idle("another kernel for the same arithmetic"),
    "use_unsloth_gc": Idle("another kernel for the same arithmetic"),
    "enable_liger_kernel": Idle("another kernel for the same arithmetic"),
    "use_v1_kernels": Idle("another kernel for the same arithmetic"),
    "moe_aux_loss_coef": Refused("mixtures of experts are not among the bases"),
    "disable_gradient_checkpointing": Taken(
        "gradient_checkpointing", "the opposite; they checkpoint by default", lambda v: not flag(v)
    ),
    "use_reentrant_gc": Idle("checkpointing is never re-entrant here; the results are the same"),
    "upcast_layernorm": Idle("norms are computed in float32 by the models themselves"),
    "upcast_lmhead_output": Idle("the loss is always computed in float32"),
    "train_from_scratch": Refused("training starts from the weights of the base"),
    "print_param_status": Idle("the start says how many parameters are trained"),
    "trust_remote_code": Idle("no code from a model's folder is ever run; the bases need none"),
    "hf_hub_token": Refused(_HUB),
    "ms_hub_token": Refused(_HUB),
    "om_hub_token": Refused(_HUB),
    # quantisation
    "quantization_bit": Taken("quantization", "4 is `nf4`, 8 is `int8`", one_of(_BITS)),
    "quantization_method": Refused(
        "bitsandbytes quantises here: `bnb`", (None, "bnb", "bitsandbytes")
    ),
    "quantization_type": Refused("4 bits are always nf4", (None, "nf4")),
    "double_quantization": Taken("double_quantization", "", flag),
    "quantization_device_map": Refused("the base lies on one device"),
    "fp8": Refused("train with bf16: true"),
    "fp8_backend": Idle("belongs to fp8"),
    "fp8_enable_fsdp_float8_all_gather": Refused("one process on one device trains here"),
    # pictures and sound
    "image_max_pixels": Idle(_IMAGES),
    "image_min_pixels": Idle(_IMAGES),
    "image_do_pan_and_scan": Idle(_IMAGES),
    "crop_to_patches": Idle(_IMAGES),
    "video_max_pixels": Idle(_IMAGES),
    "video_min_pixels": Idle(_IMAGES),
    "video_fps": Idle(_IMAGES),
    "video_maxlen": Idle(_IMAGES),
    "use_audio_in_video": Idle(_IMAGES),
    "audio_sampling_rate": Idle(_IMAGES),
    # KTransformers
    "use_kt": Refused("PyTorch trains here"),
    "kt_optimize_rule": Idle("belongs to use_kt"),
    "cpu_infer": Idle("belongs to use_kt"),
    "chunk_size": Idle("belongs to use_kt"),
    "mode": Idle("belongs to use_kt"),
}
