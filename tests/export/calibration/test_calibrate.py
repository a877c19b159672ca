"""A whole model rounded by what it computes, on texts of its own."""

from __future__ import annotations

from dataclasses import replace
from typing import Any
from unittest.mock import patch

import numpy as np
import psutil
import pytest
import torch

from artifacts.base import load_transformers_model, open_base
from artifacts.errors import Corrupt, InvalidInput
from export.block_format import Blocks, Quantized
from export.calibration import samples
from export.calibration.calibrate import calibrate
from export.calibration.samples import num_tokens, sample_texts
from export.source import MergedTensors, Source, merged_model, open_source
from tests.export.families import random_adapter, tiny_shape

NEAREST, ROUGH = Blocks(8, 32), Blocks(4, 32)


def form_of(name: str) -> Blocks | None:
    return NEAREST if "v_proj" in name else ROUGH


@pytest.fixture(scope="module", params=["llama", "qwen3"])
def source(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Source:
    """A head of its own, or (Qwen3 here) the embedding's."""
    root = tmp_path_factory.mktemp(request.param)
    (root / "base").mkdir()
    base = tiny_shape(request.param, root / "base")
    return open_source(str(random_adapter(base, root / "adapter")), str(base))


@pytest.fixture(scope="module")
def found(source: Source) -> dict[str, Quantized]:
    return calibrate(source, form_of, lambda *_: None)


@torch.no_grad()
def kl(source: Source, weights: dict[str, Quantized]) -> float:
    """Per token, of the model with these weights, on other texts than it was calibrated with."""
    exact, bent = merged_model(source), merged_model(source)
    for name, quantized in weights.items():
        form = form_of(name)
        assert form is not None
        bent.get_parameter(name).copy_(torch.from_numpy(form.dequantize(quantized)))
    draw = torch.Generator().manual_seed(9)
    ids = torch.randint(source.base.config.vocab_size, (16, 64), generator=draw)
    wanted, given = (model(ids).logits.log_softmax(-1) for model in (exact, bent))
    return float((wanted.exp() * (wanted - given)).sum(-1).mean())


def test_every_product_is_quantised_and_answers_nearer_than_rounded_to_nearest(
    source: Source, found: dict[str, Quantized]
) -> None:
    merged = MergedTensors(source)
    is_tied = source.base.config.tie_word_embeddings
    wanted = {name for name in merged if merged[name].ndim == 2}
    assert set(found) == (wanted - {"lm_head.weight"} if is_tied else wanted)
    nearest = {name: form_of(name).quantize(merged[name].numpy()) for name in found}  # type: ignore[union-attr]
    assert kl(source, found) < 0.75 * kl(source, nearest)


def test_the_same_again_gives_the_same_bytes(source: Source, found: dict[str, Quantized]) -> None:
    again = calibrate(source, form_of, lambda *_: None)
    for name, (packed, scales) in found.items():
        assert np.array_equal(packed, again[name][0])
        assert np.array_equal(scales, again[name][1])


def test_what_stays_wide_is_left_alone(source: Source) -> None:
    found = calibrate(source, lambda name: ROUGH if "mlp" in name else None, lambda *_: None)
    assert found
    assert all("mlp" in name for name in found)


def test_progress_goes_up_to_its_end(source: Source) -> None:
    told: list[tuple[int, int, str]] = []
    calibrate(source, lambda name: None, lambda *step: told.append(step))
    done, totals, what = zip(*told, strict=True)
    assert list(done) == sorted(done)
    assert done[-1] == totals[-1]
    assert set(what) == {"writing calibration texts", "calibrating"}


def test_too_little_memory_is_said_before_the_model_is_loaded(source: Source) -> None:
    little = type(psutil.virtual_memory())(*[0] * len(psutil.virtual_memory()))
    with (
        patch.object(psutil, "virtual_memory", lambda: little),
        pytest.raises(InvalidInput, match=r"takes 0\.0 GB.*--no-calibrate"),
    ):
        calibrate(source, form_of, lambda *_: None)


def test_an_adapter_of_infinities_is_refused(source: Source) -> None:
    pair = next(iter(source.weights.pairs.values()))
    kept = pair.b.clone()
    pair.b.fill_(float("inf"))
    try:
        with pytest.raises(Corrupt, match="NaN or infinity"):
            calibrate(source, form_of, lambda *_: None)
    finally:
        pair.b.copy_(kept)


def test_the_embedded_base_writes_what_a_customer_asks_and_answers_it() -> None:
    base = open_base(None)
    model: Any = load_transformers_model(base)
    with patch.object(samples, "NUM_ROWS", 16):
        ids = sample_texts(model, base, lambda _: None)
    assert ids.shape == (16, num_tokens(base))
    texts = [base.tokenizer.decode(row) for row in ids]
    assert all(text.startswith("<|bos|><|user|>") for text in texts)
    assert sum("<|end|><|assistant|>" in text for text in texts) >= 12
    assert len(set(texts)) == 16


def test_a_base_that_cannot_begin_a_text_is_refused() -> None:
    base = open_base(None)
    base.tokenizer.bos_token = base.tokenizer.eos_token = None
    with pytest.raises(InvalidInput, match="--no-calibrate"):
        sample_texts(None, replace(base, template_hash=None), lambda _: None)
