"""QLoRA on a CPU: it learns through the quantised base, serves, and its gate is exact."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from artifacts.base import open_base
from artifacts.heldout import read_heldout
from artifacts.home import Home
from tests.training.methods.runs import answer, figures, losses, served, train, unreadable, versions
from tests.training.test_run import interrupt
from training.config import parse_config
from training.errors import InvalidConfig
from training.methods.quantized import dense_weight, is_quantized, load_quantized

pytest.importorskip("bitsandbytes")


@pytest.mark.parametrize("quantization", ["nf4", "int8"])
def test_it_learns_serves_and_says_on_what_it_was_trained(
    settings: dict[str, Any], quantization: str
) -> None:
    """The live adapter on the quantised base equals the merged one on the dequantised base."""
    from peft import PeftModel

    told = losses(train(settings, quantization=quantization, learning_rate=0.02))
    assert told[-1] < 0.95 * told[0]
    (version,) = versions(settings)
    assert served(settings, version.path).pairs
    assert version.manifest.settings["quantization"] == quantization
    assert version.manifest.base_fingerprint == open_base(settings["base"]).fingerprint
    assert figures(version)["merge_difference"] < {"nf4": 1e-4, "int8": 3e-2}[quantization]
    base = open_base(settings["base"])
    config = parse_config({**settings, "quantization": quantization})
    plain = load_quantized(base, config, "float32")
    before = answer(plain, settings["base"], "What is 3?")
    model = PeftModel.from_pretrained(plain, version.path).eval()
    assert answer(model, settings["base"], "What is 3?") != before
    assert len(read_heldout(Home.open(settings["home"]), version.content_hash)) == 4


@pytest.mark.parametrize("settings_of", [{"quantization": "nf4"}, {"quantization": "int8"}])
def test_evaluating_does_not_change_what_is_learned_next(
    settings: dict[str, Any], settings_of: dict[str, Any]
) -> None:
    """bitsandbytes repacks 4-bit weights at the first evaluation, for kernels without a backward
    pass; a gradient of the layer's input tells."""
    base = open_base(settings["base"])
    model = load_quantized(base, parse_config({**settings, **settings_of}), "float32")
    linear = model.model.layers[0].mlp.up_proj
    x = torch.randn(5, linear.in_features, generator=torch.Generator().manual_seed(0))

    def gradient() -> torch.Tensor:
        inputs = x.clone().requires_grad_(True)
        linear.train()
        linear(inputs).sum().backward()
        assert inputs.grad is not None
        return inputs.grad

    before, dense = gradient(), dense_weight(linear)
    linear.eval()
    with torch.no_grad():
        out = linear(x)
    assert torch.equal(gradient(), before)
    assert torch.equal(dense_weight(linear), dense)
    assert torch.allclose(out, x @ dense.float().T, atol=2e-2 * out.abs().max().item())


def test_what_is_quantised_is_what_the_server_quantises(settings: dict[str, Any]) -> None:
    config = parse_config({**settings, "quantization": "nf4"})
    model = load_quantized(open_base(settings["base"]), config, "float32")
    modules = {name for name, m in model.named_modules()
               if isinstance(m, torch.nn.Linear) and is_quantized(m)}  # fmt: skip
    assert len(modules) == 14  # seven in each of two layers; not lm_head
    assert all(name.startswith("model.layers.") for name in modules)
    state = model.model.layers[0].mlp.up_proj.weight.quant_state
    assert (state.quant_type, state.blocksize, state.nested) == ("nf4", 64, True)


@pytest.mark.slow
def test_a_resumed_run_is_the_uninterrupted_run(settings: dict[str, Any], tmp_path: Any) -> None:
    more = {"quantization": "nf4", "double_quantization": False, "learning_rate": 0.02}
    train(settings, **more, output_dir=str(tmp_path / "whole"))
    interrupt(settings, 6, **more)
    train(settings, **more, resume=True)
    one, other = versions(settings)
    assert one.content_hash == other.content_hash


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
@pytest.mark.parametrize(
    ("key", "value"),
    [("optimizer", "adamw_8bit"), ("optimizer", "paged_adamw_8bit"), ("dtype", "float16")],
)
def test_what_needs_cuda_is_refused_before_the_data_is_read(
    settings: dict[str, Any], key: str, value: str
) -> None:
    with pytest.raises(InvalidConfig, match=f"{key}='{value}' needs a CUDA device") as caught:
        train(settings, **{key: value}, data=unreadable(settings))
    assert caught.value.param == key


def test_without_bitsandbytes_the_remedy_is_told(
    settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    with pytest.raises(InvalidConfig, match=r"pip install 'loraloop\[quantization\]'"):
        train(settings, quantization="nf4", data=unreadable(settings))


@pytest.mark.gpu
@pytest.mark.parametrize("optimizer", ["paged_adamw_8bit", "adamw_8bit"])
@pytest.mark.parametrize("quantization", ["nf4", "int8"])
def test_qlora_on_a_gpu(settings: dict[str, Any], quantization: str, optimizer: str) -> None:
    """bfloat16 products, 8-bit moments; the gate has judged parity already."""
    more = {"quantization": quantization, "optimizer": optimizer, "learning_rate": 0.02}
    told = losses(train(settings, **more, gradient_checkpointing=True))
    assert told[-1] < 0.95 * told[0]
    (version,) = versions(settings)
    assert version.manifest.settings["dtype"] == "bfloat16"
    assert served(settings, version.path).pairs


@pytest.mark.gpu
@pytest.mark.parametrize("method", ["lora", "adalora", "full", "freeze"])
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_16_bits_on_a_gpu(settings: dict[str, Any], method: str, dtype: str) -> None:
    rate = {"lora": 0.01, "adalora": 0.03, "full": 3e-3, "freeze": 1e-2}[method]
    told = losses(train({k: v for k, v in settings.items() if k != "rank"}, method=method,
                        dtype=dtype, learning_rate=rate, neftune_alpha=5.0))  # fmt: skip
    assert told[-1] < told[0]
