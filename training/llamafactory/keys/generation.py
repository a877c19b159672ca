"""How answers are generated and served; a training run does neither (generating_args.py)."""

from __future__ import annotations

from training.llamafactory.entries import Entry, Idle, Refused

_REQUEST = "a request says it, when the adapter is served"
_SERVER = "a setting of the server"
_EVALUATE = "an evaluation file: use `loraloop eval ADAPTER --suite SUITE.yaml`"

GENERATION: dict[str, Entry] = {
    **dict.fromkeys(
        (
            *("do_sample", "temperature", "top_p", "top_k", "num_beams", "max_length"),
            *("max_new_tokens", "repetition_penalty", "length_penalty", "skip_special_tokens"),
            *("generation_max_length", "generation_num_beams", "eval_num_beams"),
        ),
        Idle(_REQUEST),
    ),
    **dict.fromkeys(
        (
            *("infer_backend", "infer_dtype", "offload_folder", "use_kv_cache"),
            *("vllm_maxlen", "vllm_gpu_util", "vllm_enforce_eager", "vllm_max_lora_rank"),
            *("vllm_config", "sglang_maxlen", "sglang_mem_fraction", "sglang_tp_size"),
            *("sglang_config", "sglang_lora_backend"),
            *("kt_maxlen", "kt_use_cuda_graph", "kt_mode", "kt_force_think"),
        ),
        Idle(_SERVER),
    ),
    **dict.fromkeys(("task", "task_dir", "lang", "n_shot", "save_dir"), Refused(_EVALUATE)),
}
