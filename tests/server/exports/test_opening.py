"""What is refused before an export is served, and what is only marked."""

from __future__ import annotations

import json
import logging
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from artifacts.base import open_base
from artifacts.errors import AdapterRejected, Corrupt, InvalidInput
from artifacts.exported.record import PROOF_FILE, read_record
from artifacts.exported.verdict import read_verdict
from artifacts.home import Home
from artifacts.importing import check_takes_adapters
from server.assembly import build_server
from server.engine.errors import UnsupportedModel
from server.engine.load import EngineLimits, build_engine
from server.engine.memory import is_out_of_memory
from server.exports import export_facts, warn_of_proof
from server.settings import Settings
from tests.server.exports.conftest import write_record


def test_an_export_opens_under_the_fingerprint_that_fits(
    open_folder: Path, closed_folder: Path, tiny_base: Path
) -> None:
    original, opened, closed = map(open_base, (tiny_base, open_folder, closed_folder))
    assert opened.fingerprint == original.fingerprint
    assert opened.takes_adapters
    check_takes_adapters(opened)
    assert closed.fingerprint not in (original.fingerprint, None)
    assert not closed.takes_adapters
    with pytest.raises(AdapterRejected, match="takes no others"):
        check_takes_adapters(closed)


def test_a_merged_export_is_a_base_like_any_other(tiny_base: Path, tmp_path: Path) -> None:
    folder = tmp_path / "merged"
    shutil.copytree(tiny_base, folder)
    write_record(folder, "merged", tiny_base)
    base = open_base(folder)
    assert base.export is None
    assert export_facts(base)["export"]["format"] == "merged"
    assert export_facts(base)["export"]["proof"] == "missing"
    assert base.fingerprint == open_base(tiny_base).fingerprint


@pytest.mark.parametrize(
    ("form", "words"),
    [("gguf-q4_0", "llama.cpp and Ollama"), ("adapter", "--adapter NAME=")],
)
def test_what_other_programs_run_is_refused_with_their_names(
    form: str, words: str, tiny_base: Path, tmp_path: Path
) -> None:
    write_record(tmp_path, form, tiny_base)  # without a config.json
    with pytest.raises(InvalidInput, match=words):
        open_base(tmp_path)


def test_files_that_are_not_whole_stop_the_start(closed_folder: Path, tmp_path: Path) -> None:
    folder = tmp_path / "cut"
    shutil.copytree(closed_folder, folder)
    path = folder / "model.onnx"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(Corrupt, match=r"model\.onnx have changed"):
        open_base(folder)
    path.unlink()
    with pytest.raises(Corrupt, match=r"model\.onnx is gone"):
        open_base(folder)


@pytest.mark.parametrize(
    ("option", "value"),
    [("dtype", "bfloat16"), ("quantization", "nf4"), ("kernels", "amx")],
)
def test_options_of_other_engines_are_refused_by_name(
    closed_folder: Path, tmp_path: Path, option: str, value: str
) -> None:
    given: dict[str, object] = {option: value}
    settings = Settings(home=tmp_path, model=str(closed_folder), **given)  # type: ignore[arg-type]
    with pytest.raises(UnsupportedModel, match=f"{option} '{value}' means nothing to an export"):
        build_server(settings, Home.open(tmp_path))


def test_an_adapter_named_at_the_start_is_refused(
    closed_folder: Path, adapter: Path, tmp_path: Path
) -> None:
    settings = Settings(home=tmp_path, model=str(closed_folder))
    with pytest.raises(AdapterRejected, match="takes no others"):
        build_server(settings, Home.open(tmp_path), [("mine", adapter)])


def test_without_the_runtime_the_extra_is_named(
    closed_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(InvalidInput, match=r"pip install 'loraloop\[onnx\]'"):
        build_engine(open_base(closed_folder), limits=EngineLimits(num_threads=1))


def test_a_server_that_serves_no_export_needs_none_of_their_libraries() -> None:
    program = (
        "import sys, server.main, server.app, server.engine.load_export\n"
        "names = {'onnx', 'onnxruntime', 'onnxscript', 'gguf', 'bitsandbytes'}\n"
        "print(sorted(names & set(sys.modules)))"
    )
    answer = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=120, check=False
    )
    assert answer.stdout.strip() == "[]", answer.stderr


def test_a_proof_is_read_and_its_absence_or_failure_is_said(
    closed_folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = tmp_path / "proven"
    shutil.copytree(closed_folder, folder)
    record = read_record(folder)
    facts = {
        "format": record.format,
        "adapter_hash": record.adapter_hash,
        "base_fingerprint": record.base_fingerprint,
        "failures": [],
    }

    def verdict(**changed: object) -> str:
        (folder / PROOF_FILE).write_text(json.dumps(facts | changed))
        return read_verdict(folder, record)

    assert read_verdict(folder, record) == "missing"
    assert verdict() == "passed"
    assert verdict(failures=["max_logit_diff 1.0 is over 1e-4"]) == "failed"
    with caplog.at_level(logging.WARNING):
        warn_of_proof(open_base(folder))
    assert "failed its proof" in caplog.text
    assert verdict(adapter_hash="b" * 64) == "missing", "the proof of another export"
    with caplog.at_level(logging.WARNING):
        warn_of_proof(open_base(folder))
    assert "no proof" in caplog.text
    (folder / PROOF_FILE).write_text("{")
    with pytest.raises(Corrupt, match="no readable proof"):
        open_base(folder)


@pytest.mark.parametrize("has_arena", [True, False])
def test_onnxruntimes_own_lack_of_memory_is_told_from_others(has_arena: bool) -> None:
    import numpy as np
    import onnx
    import onnxruntime as ort

    def value(name: str, kind: int, shape: list[object]) -> object:
        return onnx.helper.make_tensor_value_info(name, kind, shape)

    number, size = onnx.TensorProto.FLOAT, onnx.TensorProto.INT64
    graph = onnx.helper.make_graph(
        [onnx.helper.make_node("Expand", ["x", "shape"], ["y"])],
        "expand",
        [value("x", number, [1]), value("shape", size, ["n"])],
        [value("y", number, None)],  # type: ignore[arg-type]
    )
    opsets = [onnx.helper.make_opsetid("", 18)]
    model = onnx.helper.make_model(graph, opset_imports=opsets, ir_version=9)
    options = ort.SessionOptions()
    options.enable_cpu_mem_arena = has_arena
    options.log_severity_level = 4
    session = ort.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )

    def failure(shape: list[int]) -> Exception:
        with pytest.raises(Exception) as found:  # noqa: PT011  its classes have no common base
            session.run(None, {"x": np.ones(1, np.float32), "shape": np.array(shape)})
        return found.value

    assert is_out_of_memory(failure([1 << 48]))
    assert not is_out_of_memory(failure([-5]))
