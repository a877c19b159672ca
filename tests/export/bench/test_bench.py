"""The table of all forms: medians in turns, ratios to torch, and what holds of the claim."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from artifacts.errors import Corrupt, InvalidInput
from export.bench import run
from export.bench.run import BenchAsked, bench_forms, measure_in_process
from export.bench.table import Row, markdown, verdicts
from export.run import Asked, Exported


@pytest.fixture
def exported(monkeypatch: pytest.MonkeyPatch) -> list[Asked]:
    """Folders whose weights have a size, and no proof."""
    seen: list[Asked] = []

    def export_forms(asked: Asked, progress: Any) -> list[Exported]:
        seen.append(asked)
        done = []
        for i, name in enumerate(asked.formats):
            folder = asked.output / name
            folder.mkdir(parents=True)
            (folder / "model.onnx").write_bytes(bytes(1000 // (i + 1)))
            done.append(Exported(name, folder, "written", None))
        return done

    monkeypatch.setattr(run, "export_forms", export_forms)
    return seen


def test_every_form_is_measured_in_turns_and_shown_by_its_median(
    exported: list[Asked], tmp_path: Path
) -> None:
    order: list[str] = []
    keys = ("load_s", "ttft_p90_s", "tokens_per_s_1", "tokens_per_s_8", "peak_memory_bytes")

    def measure(folder: Path, num_threads: int | None) -> dict[str, float]:
        order.append(folder.name)
        return dict.fromkeys(keys, float({1: 3, 2: 100, 3: 5}[order.count(folder.name)]))

    asked = BenchAsked("a@1", ("onnx", "merged", "gguf", "onnx"), output=tmp_path / "out")
    rows = bench_forms(asked, lambda *_: None, measure)
    assert order == ["merged", "onnx"] * 3
    assert [(row.format, row.size_bytes) for row in rows] == [
        ("merged", 1000),
        ("onnx", 500),
        ("gguf", 333),
    ]
    assert [row.tokens_per_s for row in rows] == [5.0, 5.0, None]
    assert exported[0].allow_unverified


def test_the_exports_go_unless_they_are_to_be_kept(exported: list[Asked], tmp_path: Path) -> None:
    def measure(folder: Path, num_threads: int | None) -> dict[str, float]:
        raise Corrupt("it broke")

    with pytest.raises(Corrupt, match="it broke"):
        bench_forms(BenchAsked("a@1", ("onnx",)), lambda *_: None, measure)
    assert not exported[0].output.exists()


def test_ratios_are_to_torch_in_the_bases_format() -> None:
    rows = [
        Row("merged", 1_000_000, 1.0, 0.2, 10.0, 40.0, 2e6, 0.0),
        Row("onnx-int4", 240_000, 0.5, 0.1, 25.0, 44.0, 1e6, 3.5),
        Row("gguf-q4_0", 300_000, perplexity_percent=2.0),
    ]
    table = markdown(rows).splitlines()
    assert table[2] == "| merged | 1.0 | 1.00 | 200 | 10.0 | 40.0 | 2 | +0.00 % |"
    assert table[3] == "| onnx-int4 | 0.2 (-76%) | 0.50 | 100 | 25.0 (2.50x) | 44.0 | 1 | +3.50 % |"
    assert table[4] == "| gguf-q4_0 | 0.3 (-70%) |  |  |  |  |  | +2.00 % |"
    int4, q4 = verdicts(rows)
    assert "76% smaller (holds), 2.50x as fast (holds), perplexity +3.50 % (does not hold)" in int4
    assert "70% smaller (does not hold), speed is other programs' affair" in q4


def test_what_cannot_be_measured_says_why(exported: list[Asked], tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match="rounds=0"):
        bench_forms(BenchAsked("a@1", rounds=0), lambda *_: None)
    with pytest.raises(InvalidInput, match="adapter is no model"):
        bench_forms(BenchAsked("a@1", ("adapter",)), lambda *_: None)
    with pytest.raises(
        Corrupt, match=r"could not be measured: error: .* is no export: it has no export.json"
    ):
        measure_in_process(tmp_path, None)
