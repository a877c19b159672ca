"""What is measured beside a proof, and the command that measures one export alone."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from export.proof.logits_file import LogitsFile
from export.proof.measure import PeakMemory, main, sizes
from tests.export.proof.test_process import merged

__all__ = ["merged"]


def test_the_command_prints_json(merged: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--batch", "1", "2", "--steps", "2", "--prompt-tokens", "5", "--prompts", "2"]
    assert main([str(merged), *options]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["format"] == "merged"
    assert found["weights_bytes"] == (merged / "model.safetensors").stat().st_size
    assert found["size_bytes"] > found["weights_bytes"]
    for name in ("load_s", "ttft_p50_s", "tokens_per_s_1", "tokens_per_s_2"):
        assert found[name] > 0
    assert "tokens_per_s_8" not in found


def test_what_cannot_be_measured_is_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([str(tmp_path)]) == 1
    assert "error: " in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main([str(tmp_path), "--steps", "0"])


def test_the_peak_counts_what_was_freed_since() -> None:
    memory = PeakMemory()
    before = memory.so_far()
    torch.ones(20_000_000).sum()  # 80 MB, gone again
    assert 70e6 < memory.so_far() - before < 160e6


def test_only_files_of_weights_count_as_weights(tmp_path: Path) -> None:
    for name, size in (("model.onnx", 5), ("model.onnx.data", 70), ("tokenizer.json", 300)):
        (tmp_path / name).write_bytes(b"x" * size)
    assert sizes(tmp_path) == {"weights_bytes": 75, "size_bytes": 375}


def test_logits_come_back_from_disk_and_leave_no_file(tmp_path: Path) -> None:
    with LogitsFile(tmp_path, vocab_size=7, num_vectors=9) as file:
        assert (file.reserve(4), file.reserve(5)) == (0, 4)
        first, second = torch.randn(4, 7), torch.randn(5, 7)
        file.write(4, second)
        file.write(0, first)
        assert torch.equal(file.read(2, 4), torch.cat([first, second])[2:6])
        assert list(tmp_path.iterdir()) == []
