"""Bases open by what they are: identity from function, refusals by name."""

from __future__ import annotations

import json
import shutil
import struct
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from artifacts.base import (
    EMBEDDED_BASE,
    INDEX_FILE,
    Checkpoint,
    load_transformers_model,
    open_base,
    open_tokenizer,
    tensor_files,
)
from artifacts.errors import Conflict, InvalidInput, NotFound
from artifacts.init_base import SHAPES, _shapes, init_base
from artifacts.tensor_file import MalformedTensorFile, TensorFile
from tests.conftest import TinyBase

WEIGHTS = "model-00001-of-00001.safetensors"


@pytest.fixture
def copy(tiny_base: TinyBase, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_base("llama"), tmp_path / "copy"))


def edit(folder: Path, file: str = "config.json", **changes: Any) -> None:
    path = folder / file
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_a_base_says_what_it_is(tiny_base: TinyBase) -> None:
    base = open_base(tiny_base("qwen3"))
    assert (base.id, base.context_length) == ("tiny-qwen3", 2048)
    assert base.eos_token_ids == {base.tokenizer.eos_token_id}
    assert base.template_hash == open_base(EMBEDDED_BASE).template_hash
    assert open_base(str(base.path)).fingerprint == base.fingerprint


def test_the_default_is_the_embedded_base() -> None:
    base = open_base()
    assert (base.id, base.path) == ("loraloop-embedded", EMBEDDED_BASE)
    assert base.context_length >= 2048
    specials = [t for t in base.tokenizer.added_tokens_decoder.values() if t.special]
    assert len(specials) >= 64


@pytest.mark.parametrize("family", ["llama", "mistral", "qwen2", "qwen3"])
def test_tokenizers_are_as_their_file_says(tiny_base: TinyBase, family: str) -> None:
    """transformers' AutoTokenizer would rebuild qwen2's."""
    ids = open_tokenizer(EMBEDDED_BASE)("订单 12, it's <|end|>", add_special_tokens=False).input_ids
    tokenizer = open_tokenizer(tiny_base(family))
    assert tokenizer("订单 12, it's <|end|>", add_special_tokens=False).input_ids == ids


# --- fingerprint ---


def test_fingerprint_ignores_names_and_sharding(copy: Path, tiny_base: TinyBase) -> None:
    reference = open_base(tiny_base("llama")).fingerprint
    edit(copy, _name_or_path="elsewhere", transformers_version="9", use_cache=False)
    tensors = load_file(copy / WEIGHTS)
    (copy / WEIGHTS).unlink()
    names = sorted(tensors, reverse=True)
    for file, part in (("a.safetensors", names[:5]), ("b.safetensors", names[5:])):
        save_file({name: tensors[name] for name in part}, copy / file)
    shards = {name: "a.safetensors" if name in names[:5] else "b.safetensors" for name in names}
    (copy / INDEX_FILE).write_text(json.dumps({"weight_map": shards}))
    base = open_base(copy)
    assert base.fingerprint == reference
    read = dict(Checkpoint(base))
    assert read.keys() == tensors.keys()
    assert all(torch.equal(read[name], tensors[name]) for name in tensors)


@pytest.mark.parametrize("change", [{"rms_norm_eps": 1e-3}, {"rope_parameters": None}])
def test_fingerprint_tells_configs_apart(copy: Path, change: dict[str, Any]) -> None:
    before = open_base(copy).fingerprint
    if "rope_parameters" in change:
        change = {"rope_parameters": {"rope_type": "default", "rope_theta": 77.0}}
    edit(copy, **change)
    assert open_base(copy).fingerprint != before


@pytest.mark.parametrize("index", [0, -1])
def test_fingerprint_tells_weights_apart_at_both_ends(copy: Path, index: int) -> None:
    before = open_base(copy).fingerprint
    tensors = load_file(copy / WEIGHTS)
    tensors["model.embed_tokens.weight"].view(-1)[index] += 1
    save_file(tensors, copy / WEIGHTS)
    assert open_base(copy).fingerprint != before


def test_a_sample_is_spread_over_the_whole_tensor(tmp_path: Path) -> None:
    """1 MiB: no part longer than 1/15 goes unseen, and little is read."""
    path = tmp_path / "x.safetensors"
    values = torch.arange(1 << 18, dtype=torch.int32)
    save_file({"x": values}, path)
    with TensorFile(path) as file:
        sample = file.sample(file.entries["x"])
    assert len(sample) == 64 * 1024
    seen = [struct.unpack("<i", sample[i : i + 4])[0] for i in range(0, len(sample), 4096)]
    assert seen[0] == 0
    assert struct.unpack("<i", sample[-4:])[0] == (1 << 18) - 1
    assert max(b - a for a, b in pairwise(seen)) <= (1 << 18) // 15


# --- refusals ---


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_type": "gpt2"}, "'gpt2' is not supported; choose a base of llama, qwen2"),
        ({"model_type": None}, "not supported"),
        ({"hidden_act": "gelu"}, "gelu"),
        ({"quantization_config": {"quant_method": "gptq"}}, "quantised"),
        ({"model_type": "mistral", "sliding_window": 512}, "sliding window of 512"),
        ({"model_type": "qwen2", "use_sliding_window": True, "max_window_layers": 1}, "4096"),
        ({"vocab_size": 100}, "do not belong together"),
    ],
)
def test_what_is_not_supported_is_refused_by_name(
    copy: Path, changes: dict[str, Any], message: str
) -> None:
    edit(copy, max_position_embeddings=8192, **changes)
    with pytest.raises(InvalidInput, match=message):
        open_base(copy)


def test_a_window_that_limits_nothing_is_accepted(copy: Path) -> None:
    edit(copy, model_type="mistral", sliding_window=4096)
    assert open_base(copy).context_length == 2048


def test_what_is_missing_is_not_found(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    for source in (copy / "none", copy.parent, "a/b/c", "no such", ""):
        with pytest.raises(NotFound, match="give"):
            open_base(source)
    shutil.move(copy / WEIGHTS, copy / "pytorch_model.bin")
    with pytest.raises(NotFound, match="missing"):
        open_base(copy)
    (copy / INDEX_FILE).unlink()
    with pytest.raises(InvalidInput, match="pickles"):
        open_base(copy)
    (copy / "pytorch_model.bin").unlink()
    with pytest.raises(NotFound, match="safetensors"):
        tensor_files(copy)
    (copy / "tokenizer.json").unlink()
    with pytest.raises(NotFound, match="tokenizer"):
        open_base(copy)


def test_an_unreachable_hub_id_names_the_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub
    from huggingface_hub.errors import LocalEntryNotFoundError

    def offline(*_: object, **__: object) -> str:
        raise LocalEntryNotFoundError("offline")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", offline)
    with pytest.raises(NotFound, match="local folder"):
        open_base("org/some-model")


def test_a_hub_id_is_downloaded_and_named_by_its_last_part(
    tiny_base: TinyBase, monkeypatch: pytest.MonkeyPatch
) -> None:
    import huggingface_hub

    asked: list[str] = []

    def download(hub_id: str, **_: object) -> str:
        asked.append(hub_id)
        return str(tiny_base("llama"))

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    assert open_base("org/some-model").id == "some-model"
    assert asked == ["org/some-model"]


def test_a_base_without_template_opens(copy: Path) -> None:
    (copy / "chat_template.jinja").unlink()
    assert open_base(copy).template_hash is None


def test_eos_ids_come_from_generation_config_and_tokenizer(copy: Path) -> None:
    edit(copy, "generation_config.json", eos_token_id=[5, 7])
    own = open_tokenizer(copy).eos_token_id
    assert open_base(copy).eos_token_ids == {5, 7, own}
    (copy / "generation_config.json").unlink()
    edit(copy, eos_token_id=9)
    assert open_base(copy).eos_token_ids == {9, own}


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\x02",
        b"\xff" * 16,
        struct.pack("<Q", 2) + b"[]",
        struct.pack("<Q", 1) + b"{",
        struct.pack("<Q", 14) + b'{"x": {"a":1}}',
        struct.pack("<Q", 52) + b'{"x":{"dtype":"F32","shape":[1],"data_offsets":[0,8]}'[:52],
    ],
)
def test_malformed_weights_are_refused(tmp_path: Path, content: bytes, copy: Path) -> None:
    path = copy / WEIGHTS
    path.write_bytes(content)
    with pytest.raises(MalformedTensorFile):
        TensorFile(path)
    with pytest.raises(InvalidInput, match="copy the base again"):
        open_base(copy)


# --- random bases ---


def test_random_bases_depend_on_seed_and_name_only(tmp_path: Path) -> None:
    one, same, other = (
        open_base(init_base("tiny-qwen2", tmp_path / name, seed=seed))
        for name, seed in (("one", 1), ("same", 1), ("other", 2))
    )
    assert one.fingerprint == same.fingerprint != other.fingerprint
    assert {tensor.dtype for tensor in Checkpoint(one).values()} == {torch.bfloat16}


@pytest.mark.parametrize("family", ["llama", "mistral", "qwen2", "qwen3"])
def test_random_bases_load_whole_and_run(tiny_base: TinyBase, family: str) -> None:
    base = open_base(tiny_base(family))
    model = load_transformers_model(base, "float32")
    stored = dict(Checkpoint(base))
    assert stored.keys() == dict(model.named_parameters()).keys()
    assert all(torch.equal(value, stored[name]) for name, value in model.named_parameters())
    assert not model.training
    with torch.no_grad():
        logits = model(torch.tensor([[1, 2, 3]])).logits
    assert logits.isfinite().all()
    assert logits.std() > 0.1


PUBLISHED_SIZES = {  # parameters of the real models, tied embeddings counted once
    "deepseek-llm-7b": 6_910_365_696,
    "qwen2.5-0.5b": 494_032_768,
    "qwen2.5-1.5b": 1_543_714_304,
    "llama-3.2-1b": 1_235_814_400,
}


@pytest.mark.parametrize("shape", PUBLISHED_SIZES)
def test_real_shapes_have_the_real_number_of_parameters(shape: str) -> None:
    from transformers import AutoConfig

    shapes = _shapes(AutoConfig.for_model(**SHAPES[shape]))
    assert sum(torch.Size(each).numel() for each in shapes.values()) == PUBLISHED_SIZES[shape]


def test_init_base_refuses_and_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match="tiny-llama"):
        init_base("gpt2", tmp_path / "x")
    with pytest.raises(InvalidInput, match="bfloat16"):
        init_base("tiny-llama", tmp_path / "x", dtype="int8")
    with pytest.raises(NotFound, match="tokenizer"):
        init_base("tiny-llama", tmp_path / "x", tokenizer=tmp_path)
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").write_text("")
    with pytest.raises(Conflict, match="not empty"):
        init_base("tiny-llama", tmp_path / "full")
