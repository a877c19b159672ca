"""LoRA folders read as PEFT would run them, and everything else refused with its reason."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file

from artifacts.adapter import (
    CONFIG_FILE,
    WEIGHTS_FILE,
    LoraWeights,
    check_adapter,
    contained,
    linear_shapes,
    read_adapter,
)
from artifacts.adapter_config import matching_key
from artifacts.base import open_base
from artifacts.errors import AdapterRejected
from tests.conftest import PeftAdapter, TinyBase

Tensors = dict[str, torch.Tensor]
NAME = "base_model.model.model.layers.0.self_attn.q_proj.lora_{}.weight"


def plain(rank: int = 2, dtype: torch.dtype = torch.float32) -> Tensors:
    generator = torch.Generator().manual_seed(rank)
    a = torch.randn(rank, 64, generator=generator)
    b = torch.randn(64, rank, generator=generator)
    return {NAME.format("A"): a.to(dtype), NAME.format("B"): b.to(dtype)}


def write(folder: Path, tensors: Tensors, **config: Any) -> Path:
    folder.mkdir(exist_ok=True)
    settings = {"peft_type": "LORA", "r": 2, "lora_alpha": 4} | config
    (folder / CONFIG_FILE).write_text(json.dumps(settings))
    save_file(tensors, folder / WEIGHTS_FILE)
    return folder


def reason(read: Callable[[], object]) -> str:
    with pytest.raises(AdapterRejected) as caught:
        read()
    assert len(str(caught.value)) > 20
    return caught.value.reason


PEFT_SETTINGS: list[dict[str, Any]] = [
    {},
    {"targets": ["q_proj", "v_proj"]},
    {"targets": r".*\.1\.mlp\.(up|down)_proj"},
    {"targets": ["q_proj"], "layers_to_transform": [1]},
    {"use_rslora": True, "lora_alpha": 3},
    {
        "rank_pattern": {r"layers\.1\..*\.q_proj": 7, "up_proj": 2, "self_attn.v_proj": 1},
        "alpha_pattern": {"q_proj": 5, r"model\.layers\.0\.mlp\.down_proj": 32},
    },
    {"use_rslora": True, "rank_pattern": {"^model.layers.0.self_attn.k_proj": 9}},
]


@pytest.mark.parametrize("settings", PEFT_SETTINGS)
def test_updates_equal_pefts_own(
    tiny_base: TinyBase, peft_adapter: PeftAdapter, settings: dict[str, Any]
) -> None:
    """scaling * B @ A of every module is PEFT's get_delta_weight, and no module is missing."""
    from peft import PeftModel
    from transformers import AutoConfig, AutoModelForCausalLM

    base = tiny_base("llama")
    folder = peft_adapter(base, 4, **settings)
    model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(base))
    reference = {
        name: module.get_delta_weight("default")
        for name, module in PeftModel.from_pretrained(
            model, folder
        ).base_model.model.named_modules()
        if hasattr(module, "get_delta_weight") and "default" in module.lora_A
    }
    weights = read_adapter(folder)
    assert weights.pairs.keys() == reference.keys()
    for module, pair in weights.pairs.items():
        assert torch.allclose(pair.scaling * pair.b @ pair.a, reference[module], atol=1e-6), module
    check_adapter(weights, linear_shapes(open_base(base).config), max_rank=9)


@given(
    keys=st.lists(
        st.sampled_from(
            [
                "q_proj",
                "proj",
                "self_attn.q_proj",
                "^model",
                "x|up_proj",
                "model.*",
                r"layers\.1\..*",
            ]
        ),
        unique=True,
        max_size=4,
    ),
    module=st.sampled_from(
        ["model.layers.1.self_attn.q_proj", "model.layers.11.mlp.up_proj", "q_proj", "xq_proj"]
    ),
)
def test_patterns_match_as_in_peft(keys: list[str], module: str) -> None:
    from peft.utils.other import get_pattern_key

    assert matching_key(dict.fromkeys(keys, 1), module) == get_pattern_key(keys, module)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_weights_keep_their_dtype(tmp_path: Path, dtype: torch.dtype) -> None:
    weights = read_adapter(write(tmp_path / "a", plain(dtype=dtype)))
    (pair,) = weights.pairs.values()
    assert (pair.a.dtype, pair.b.dtype, pair.scaling) == (dtype, dtype, 2.0)
    assert torch.equal(pair.a, plain(dtype=dtype)[NAME.format("A")])
    assert weights.num_bytes == 2 * 2 * 64 * dtype.itemsize
    assert (weights.rank, weights.alpha, weights.target_modules) == (2, 4.0, ("q_proj",))
    assert weights.num_parameters == 256


# --- content hash ---


def two_modules() -> Tensors:
    tensors = plain()
    renamed = {key.replace("q_proj", "v_proj"): value + 1 for key, value in tensors.items()}
    return tensors | renamed


SAME: list[tuple[str, Tensors, dict[str, Any]]] = [
    ("order", dict(reversed(two_modules().items())), {}),
    ("irrelevant keys", two_modules(), {"base_model_name_or_path": "/x", "lora_dropout": 0.5}),
    ("target list", two_modules(), {"target_modules": ["v_proj", "q_proj"]}),
    ("alpha by pattern", two_modules(), {"lora_alpha": 9, "alpha_pattern": {".*_proj": 4}}),
    ("rank by pattern", two_modules(), {"r": 5, "rank_pattern": {"q_proj": 2, "v_proj": 2}}),
    ("rank-stabilised", two_modules(), {"use_rslora": True, "lora_alpha": 2 * 2**0.5}),
]
OTHER: list[tuple[str, Tensors, dict[str, Any]]] = [
    ("one weight", two_modules() | {NAME.format("A"): plain()[NAME.format("A")] + 1e-3}, {}),
    ("scaling", two_modules(), {"lora_alpha": 5}),
    ("one scaling", two_modules(), {"alpha_pattern": {"q_proj": 5}}),
    ("dtype", {key: value.bfloat16() for key, value in two_modules().items()}, {}),
    ("fewer modules", plain(), {}),
    (
        "other module",
        {key.replace("layers.0", "layers.1"): value for key, value in two_modules().items()},
        {},
    ),
]


def content_hash(folder: Path, tensors: Tensors, config: dict[str, Any]) -> str:
    return read_adapter(write(folder, tensors, **config)).content_hash


@pytest.mark.parametrize(("what", "tensors", "config"), SAME)
def test_hash_ignores_what_changes_no_answer(
    tmp_path: Path, what: str, tensors: Tensors, config: dict[str, Any]
) -> None:
    reference = content_hash(tmp_path / "one", two_modules(), {})
    assert content_hash(tmp_path / "two", tensors, config) == reference


@pytest.mark.parametrize(("what", "tensors", "config"), OTHER)
def test_hash_tells_apart_what_answers_differently(
    tmp_path: Path, what: str, tensors: Tensors, config: dict[str, Any]
) -> None:
    reference = content_hash(tmp_path / "one", two_modules(), {})
    assert content_hash(tmp_path / "two", tensors, config) != reference


# --- refusals ---

BAD_CONFIGS: list[tuple[dict[str, Any], str]] = [
    ({"use_dora": True}, "unsupported_feature"),
    ({"modules_to_save": ["lm_head"]}, "unsupported_feature"),
    ({"bias": "lora_only"}, "unsupported_feature"),
    ({"lora_bias": True}, "unsupported_feature"),
    ({"trainable_token_indices": [1]}, "unsupported_feature"),
    ({"fan_in_fan_out": True}, "unsupported_feature"),
    ({"layer_replication": [[0, 2]]}, "unsupported_feature"),
    ({"megatron_config": {"a": 1}}, "unsupported_feature"),
    ({"target_parameters": ["x"]}, "unsupported_feature"),
    ({"alora_invocation_tokens": [1]}, "unsupported_feature"),
    ({"loftq_config": {"loftq_bits": 4}}, "unsupported_feature"),
    ({"some_future_switch": True}, "unsupported_feature"),
    *(({"init_lora_weights": init}, "unsupported_feature") for init in ("pissa", "olora")),
    *(({"init_lora_weights": init}, "unsupported_feature") for init in ("pissa_niter_4", "corda")),
    ({"peft_type": "IA3"}, "unsupported_type"),
    ({"peft_type": "ADALORA"}, "unsupported_type"),
    ({"task_type": "SEQ_CLS"}, "unsupported_type"),
    ({"r": 0}, "unreadable_config"),
    ({"r": "2"}, "unreadable_config"),
    ({"r": True}, "unreadable_config"),
    ({"lora_alpha": None}, "unreadable_config"),
    ({"lora_alpha": float("nan")}, "unreadable_config"),
    ({"lora_alpha": 10**400}, "unreadable_config"),
    ({"rank_pattern": {"q_proj": 0}}, "unreadable_config"),
    ({"rank_pattern": ["q_proj"]}, "unreadable_config"),
    ({"alpha_pattern": {"(": 2}}, "unreadable_config"),
    ({"alpha_pattern": {"a(?i)": 2}}, "unreadable_config"),
    ({"lora_alpha": 0}, "zero_effect"),
    ({"r": 3}, "shape_mismatch"),
]


@pytest.mark.parametrize(("config", "expected"), BAD_CONFIGS)
def test_configs_that_we_would_not_honour_are_refused(
    tmp_path: Path, config: dict[str, Any], expected: str
) -> None:
    folder = write(tmp_path / "a", plain(), **config)
    assert reason(lambda: read_adapter(folder)) == expected


HARMLESS: list[dict[str, Any]] = [
    {"init_lora_weights": "gaussian", "eva_config": {"rho": 2}, "task_type": "CAUSAL_LM"},
    {"lora_dropout": 0.1, "target_modules": "all-linear", "layers_to_transform": [0]},
    {"some_future_switch": None, "another": False, "third": {}, "megatron_core": "megatron.core"},
    {"auto_mapping": {"base_model_class": "X"}, "revision": "main", "inference_mode": True},
]


@pytest.mark.parametrize("config", HARMLESS)
def test_settings_without_effect_on_inference_are_accepted(
    tmp_path: Path, config: dict[str, Any]
) -> None:
    assert read_adapter(write(tmp_path / "a", plain(), **config)).rank == 2


def test_every_default_of_peft_is_accepted(tmp_path: Path) -> None:
    from peft import LoraConfig

    config = LoraConfig(r=2, lora_alpha=4).to_dict()
    assert read_adapter(write(tmp_path / "a", plain(), **config)).rank == 2


A, B = NAME.format("A"), NAME.format("B")
BAD_TENSORS: list[tuple[Tensors, str]] = [
    ({}, "no_module"),
    ({A: plain()[A]}, "shape_mismatch"),
    (plain() | {A: torch.ones(2, 64, dtype=torch.float64)}, "unsupported_dtype"),
    (plain() | {A: torch.ones(2, 64, dtype=torch.int8)}, "unsupported_dtype"),
    (plain() | {A: torch.ones(2, 8, 8)}, "shape_mismatch"),
    (plain() | {B: torch.ones(64, 3)}, "shape_mismatch"),
    (plain() | {A: torch.full((2, 64), float("nan"))}, "not_finite"),
    (plain() | {B: torch.full((64, 2), float("inf"), dtype=torch.float16)}, "not_finite"),
    (plain() | {B: torch.zeros(64, 2)}, "zero_effect"),
    (plain() | {A: torch.zeros(2, 64)}, "zero_effect"),
    (plain() | {A.replace("A.weight", "magnitude_vector"): torch.ones(64)}, "unsupported_feature"),
    (plain() | {"base_model.model.lm_head.weight": torch.ones(4, 4)}, "unknown_tensor"),
    (plain() | {B.replace("weight", "bias"): torch.ones(64)}, "unsupported_feature"),
    ({"x.lora_embedding_A": torch.ones(2, 4)}, "unsupported_feature"),
    ({A.removeprefix("base_model.model."): torch.ones(2, 64)}, "unknown_tensor"),
]


@pytest.mark.parametrize(("tensors", "expected"), BAD_TENSORS)
def test_tensors_that_are_no_plain_lora_are_refused(
    tmp_path: Path, tensors: Tensors, expected: str
) -> None:
    folder = write(tmp_path / "a", tensors)
    assert reason(lambda: read_adapter(folder)) == expected


def test_one_module_with_effect_is_enough(tmp_path: Path) -> None:
    tensors = two_modules()
    tensors[B.replace("q_proj", "v_proj")] = torch.zeros(64, 2)
    assert len(read_adapter(write(tmp_path / "a", tensors)).pairs) == 2


def test_missing_and_broken_files_have_reasons(tmp_path: Path) -> None:
    folder = write(tmp_path / "a", plain())
    whole = (folder / WEIGHTS_FILE).read_bytes()
    for content in (b"", b"\x80\x04K\x01.", whole[:-1], whole[:40], b"\xff" * 64):
        (folder / WEIGHTS_FILE).write_bytes(content)
        assert reason(lambda: read_adapter(folder)) == "unreadable_weights"
    (folder / WEIGHTS_FILE).unlink()
    assert reason(lambda: read_adapter(folder)) == "missing_weights"
    for content in (b"{", b"[]", b"\xff", b"[" * 100_000):
        (folder / CONFIG_FILE).write_bytes(content)
        assert reason(lambda: read_adapter(folder)) == "unreadable_config"
    (folder / CONFIG_FILE).unlink()
    assert reason(lambda: read_adapter(folder)) == "missing_config"


@pytest.mark.parametrize("name", ["adapter_model.bin", "pytorch_model.pt", "x.pkl"])
def test_pickles_are_refused_and_never_opened(tmp_path: Path, name: str) -> None:
    folder = write(tmp_path / "a", plain())
    (folder / WEIGHTS_FILE).unlink()
    bomb = tmp_path / "ran"
    code = f"c__builtin__\nopen\n(S'{bomb}'\nS'w'\ntR."
    (folder / name).write_text(code)
    assert reason(lambda: read_adapter(folder)) == "pickle_refused"
    assert not bomb.exists()


def test_weights_stay_when_the_file_goes(tmp_path: Path) -> None:
    folder = write(tmp_path / "a", plain())
    weights = read_adapter(folder)
    (folder / WEIGHTS_FILE).write_bytes(b"\0" * 2000)
    shutil.rmtree(folder)
    assert torch.equal(next(iter(weights.pairs.values())).a, plain()[A])


# --- against a base ---


@pytest.fixture(scope="module")
def shapes() -> dict[str, tuple[int, int]]:
    return {"model.layers.0.self_attn.q_proj": (64, 64)}


def weights_of(folder: Path, tensors: Tensors, **config: Any) -> LoraWeights:
    return read_adapter(write(folder, tensors, **config))


def test_an_adapter_must_fit_the_base(tmp_path: Path, shapes: dict[str, tuple[int, int]]) -> None:
    fitting = weights_of(tmp_path / "a", plain())
    check_adapter(fitting, shapes, max_rank=2)
    assert reason(lambda: check_adapter(fitting, shapes, max_rank=1)) == "rank_too_high"
    narrow = {key: (64, 32) for key in shapes}
    assert reason(lambda: check_adapter(fitting, narrow, max_rank=2)) == "shape_mismatch"
    elsewhere = weights_of(
        tmp_path / "b", {key.replace("layers.0", "layers.9"): v for key, v in plain().items()}
    )
    assert reason(lambda: check_adapter(elsewhere, shapes, max_rank=2)) == "unknown_module"
    head = weights_of(
        tmp_path / "c",
        {
            key.replace("model.layers.0.self_attn.q_proj", "lm_head"): v
            for key, v in plain().items()
        },
    )
    assert reason(lambda: check_adapter(head, shapes, max_rank=2)) == "unsupported_feature"


@pytest.mark.parametrize("family", ["llama", "mistral", "qwen2", "qwen3"])
def test_linear_shapes_are_those_of_transformers(tiny_base: TinyBase, family: str) -> None:
    from transformers import AutoModelForCausalLM

    config = open_base(tiny_base(family)).config
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    found = {
        name: (module.out_features, module.in_features)
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Linear) and name != "lm_head"
    }
    assert linear_shapes(config) == found


def test_contained_follows_links(tmp_path: Path) -> None:
    root, outside = tmp_path / "root", tmp_path / "outside"
    for folder in (root / "in", outside):
        folder.mkdir(parents=True)
    (root / "link").symlink_to(outside)
    (root / "loop").symlink_to(root / "loop")
    assert contained(root / "in" / ".." / "in", [root]) == root / "in"
    assert contained(outside, [root, outside]) == outside
    for path in (root / "link", root / ".." / "outside", outside, tmp_path / "rootless"):
        assert reason(lambda: contained(path, [root])) == "path_escape"  # noqa: B023
    for path in (Path("\0"), root / "loop" / "x"):
        assert reason(lambda: contained(path, [root])) == "path_escape"  # noqa: B023
