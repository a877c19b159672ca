"""Which kernels an engine gets, and the reason it gives for others than those hoped for."""

from __future__ import annotations

import _ctypes
import logging
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from artifacts.base import open_base
from server.engine.amx import library
from server.engine.amx.decoder import shape_problem
from server.engine.decoder import DecoderShape, Weights
from server.engine.errors import UnsupportedModel
from server.engine.load import EngineLimits, Kernels, build_engine
from server.engine.runner import TorchRunner
from server.engine.runner_amx import AmxRunner
from tests.conftest import TinyBase
from tests.server.engine.amx import needs_amx

LIMITS = EngineLimits(kv_cache_tokens=64)
GOOD = DecoderShape(2, 64, 128, 2, 1, 32, 160, 1e-6)


def kind_of_runner(
    kernels: Kernels = "auto", dtype: str = "bfloat16", path: Path | None = None
) -> type:
    engine = build_engine(open_base(path), dtype=dtype, kernels=kernels, limits=LIMITS)
    return type(engine._runner)


def no_flags(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(library, "_cpu_flags", lambda: library.NEEDED_FLAGS - {"amx_bf16"})


def no_file(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(library, "library_path", lambda: folder / "_kernels.so")


def no_library(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "_kernels.so").write_bytes(b"\x7fELF, or not")
    no_file(folder, monkeypatch)


def another_library(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(library, "library_path", lambda: Path(_ctypes.__file__))


def other_structures(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(library, "Layer", library.Span)


@pytest.mark.parametrize(
    ("obstacle", "reason"),
    [
        pytest.param(no_flags, "the CPU lacks amx_bf16", id="an older CPU"),
        pytest.param(no_file, "not compiled at installation", id="no compiler"),
        pytest.param(no_library, "_kernels.so", id="a broken file", marks=needs_amx),
        pytest.param(another_library, "other sources", id="another file", marks=needs_amx),
        pytest.param(other_structures, "other sources", id="an old build", marks=needs_amx),
    ],
)
def test_what_stands_in_the_way_is_logged_or_refused(
    obstacle: Callable[[Path, pytest.MonkeyPatch], None],
    reason: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(library, "_cpu_flags", lambda: library.NEEDED_FLAGS)
    obstacle(tmp_path, monkeypatch)
    assert reason in (library.why_not() or "")
    with caplog.at_level(logging.INFO):
        assert kind_of_runner() is TorchRunner
    assert reason in caplog.text
    with pytest.raises(UnsupportedModel, match="kernels amx cannot be used") as refused:
        kind_of_runner("amx")
    assert reason in str(refused.value)


def test_a_system_without_proc_has_no_flags(monkeypatch: pytest.MonkeyPatch) -> None:
    def unreadable(path: Path) -> str:
        raise FileNotFoundError(path)

    monkeypatch.setattr(Path, "read_text", unreadable)
    assert "the CPU lacks amx_bf16, amx_tile" in (library.why_not() or "")


@needs_amx
def test_bfloat16_runs_on_amx_unless_told_otherwise() -> None:
    assert kind_of_runner() is AmxRunner
    assert kind_of_runner("amx", "auto") is AmxRunner  # the embedded base is stored so
    assert kind_of_runner("torch") is TorchRunner


def test_float32_runs_on_torch() -> None:
    assert kind_of_runner(dtype="float32") is TorchRunner
    with pytest.raises(UnsupportedModel, match="float32"):
        kind_of_runner("amx", "float32")


@needs_amx
def test_a_shape_that_fits_no_tile_runs_on_torch(tiny_base: TinyBase) -> None:
    assert kind_of_runner(path=tiny_base("llama")) is TorchRunner  # heads of 16
    with pytest.raises(UnsupportedModel, match="head_dim 16 is no multiple of 32"):
        kind_of_runner("amx", path=tiny_base("llama"))


@pytest.mark.parametrize(
    ("field", "size"),
    [("hidden", 80), ("intermediate", 100), ("head_dim", 48), ("vocab_size", 155)],
)
def test_shapes_that_the_kernels_lack_are_named(field: str, size: int) -> None:
    assert shape_problem(GOOD) is None
    assert str(size) in (shape_problem(replace(GOOD, **{field: size})) or "")


def test_a_tensor_of_another_shape_never_reaches_the_kernels() -> None:
    weights = Weights({"w": torch.zeros(6, 32)}, torch.bfloat16, torch.device("cpu"))
    assert weights.take("w", 6, 32).shape == (6, 32)
    with pytest.raises(UnsupportedModel, match=r"w is \[6, 32\] .* \[8, 32\]"):
        weights.optional("w", 8, 32)
