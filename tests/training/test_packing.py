"""A packed run: fewer, fuller steps, and a resume that changes nothing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tests.training.test_run import interrupt, train, versions

PACKED = {"packing": True, "max_length": 80, "batch_size": 2, "epochs": 3, "dropout": 0.1}


def test_packed_steps_are_fewer_and_the_adapter_learns(
    settings: dict[str, Any], tmp_path: Path
) -> None:
    packed = train(settings, **PACKED)
    plain = {"batch_size": 2, "home": str(tmp_path / "plain"), "output_dir": str(tmp_path / "p")}
    unpacked = train(settings | PACKED | plain, packing=False)
    steps, more = (run.of("started")[0]["total_steps"] for run in (packed, unpacked))
    assert 8 < steps < more
    metrics = packed.of("published")[0]["metrics"]
    assert metrics["adapter_loss"] < 0.9 * metrics["base_loss"]


def test_a_resumed_packed_run_is_the_uninterrupted_one(
    settings: dict[str, Any], tmp_path: Path
) -> None:
    train(settings, **PACKED, home=str(tmp_path / "whole"), output_dir=str(tmp_path / "w"))
    interrupt(settings, 6, **PACKED)
    train(settings, **PACKED, resume=True)
    whole = versions(settings | {"home": str(tmp_path / "whole")})
    assert versions(settings)[0].content_hash == whole[0].content_hash
