"""One command of several formats: whole or not there, proven or refused, and a no-op when done."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from artifacts.adapter import read_adapter
from artifacts.base import open_base
from artifacts.errors import (
    AdapterRejected,
    Conflict,
    Corrupt,
    InvalidData,
    InvalidInput,
    NotFound,
    StorageFull,
)
from artifacts.exported.record import read_record
from export import run
from export.forms.form import Options, Workshop
from export.proof.process import ProofAsk
from export.proof.report import Prompts, Proof, read_proof, write_proof
from export.run import Asked, Exported, export_forms
from export.source import Source


class FakeForm:
    """Writes one file with what it was asked for."""

    options = frozenset({"block_size"})
    wanted_bytes = 10
    error: BaseException | None = None
    num_writes = 0

    def check(self, source: Source, options: Options) -> None:
        pass

    def num_bytes(self, source: Source, options: Options) -> int:
        return self.wanted_bytes

    def write(self, workshop: Workshop, options: Options, folder: Path) -> dict[str, Any]:
        self.num_writes += 1
        (folder / "model.onnx").write_text(f"blocks of {options.block_size}")
        if self.error is not None:
            raise self.error
        return {"opset": 18}


class Prover:
    """Passes or fails what it is told to, and remembers what it was asked."""

    def __init__(self) -> None:
        self.failing: set[str] = set()
        self.asked: list[list[str]] = []

    def __call__(self, folders: Sequence[Path], ask: ProofAsk, progress: Any) -> list[Proof]:
        self.asked.append([folder.name for folder in folders])
        return [self._prove(folder) for folder in folders]

    def _prove(self, folder: Path) -> Proof:
        record = read_record(folder)
        proof = Proof(
            format=record.format,
            adapter_hash=record.adapter_hash,
            base_fingerprint=record.base_fingerprint,
            prompts=Prompts(source="given", count=32, sha256="0" * 64),
            decode_steps=32,
            figures={"max_logit_diff": 1e-5},
            tolerances={"max_logit_diff": 1e-4},
            failures=("it is off by 7",) if record.format in self.failing else (),
            measured={},
            versions={},
            created_at="2026-01-01T00:00:00+00:00",
        )
        write_proof(folder, proof)
        return proof


@pytest.fixture
def form(monkeypatch: pytest.MonkeyPatch) -> FakeForm:
    fake = FakeForm()
    monkeypatch.setattr(run, "form_of", lambda name: fake)
    return fake


@pytest.fixture
def prover(monkeypatch: pytest.MonkeyPatch) -> Prover:
    fake = Prover()
    monkeypatch.setattr(run, "prove_in_fresh_process", fake)
    return fake


@pytest.fixture
def ask(adapter: Path, tiny_base: Path, tmp_path: Path, form: FakeForm, prover: Prover) -> Any:
    def export(*formats: str, **changes: Any) -> list[Exported]:
        asked = {"output": tmp_path / "out", "base": str(tiny_base), **changes}
        return export_forms(Asked(str(adapter), formats=formats, **asked), lambda *_: None)

    return export


@pytest.fixture(autouse=True)
def nothing_is_left(tmp_path: Path) -> Iterator[None]:
    yield
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


def test_one_format_is_the_folder_and_several_have_one_each(ask: Any, tmp_path: Path) -> None:
    [one] = ask("onnx")
    assert (one.state, one.folder) == ("written", tmp_path / "out")
    both = ask("onnx", "torchscript", output=tmp_path / "both")
    assert [each.folder for each in both] == [tmp_path / "both/onnx", tmp_path / "both/torchscript"]
    for folder in (one.folder, *(each.folder for each in both)):
        assert {"model.onnx", "export.json", "proof.json", "README.md", "config.json"} <= {
            path.name for path in folder.iterdir()
        }


def test_the_record_says_what_was_made_of_what(
    ask: Any, adapter: Path, tiny_base: Path, tmp_path: Path
) -> None:
    ask("onnx", options={"block_size": 32})
    record, base = read_record(tmp_path / "out"), open_base(tiny_base)
    assert record.adapter_hash == read_adapter(adapter).content_hash
    assert record.base_fingerprint == base.fingerprint
    assert (record.options, record.settings) == ({"block_size": 32}, {"opset": 18})
    assert set(record.files) >= {"model.onnx", "config.json"}
    assert not {"export.json", "proof.json", "README.md"} & set(record.files)
    assert record.fingerprint != base.fingerprint
    card = (tmp_path / "out/README.md").read_text()
    assert "Passed" in card
    assert record.adapter_hash in card


def test_the_same_again_is_a_no_op(ask: Any, form: FakeForm, tmp_path: Path) -> None:
    ask("onnx")
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").iterdir()}
    [again] = ask("onnx")
    assert again.state == "unchanged"
    assert again.proof is not None
    assert form.num_writes == 1
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "out").iterdir()} == before


def test_only_what_is_missing_is_made(ask: Any, form: FakeForm, prover: Prover) -> None:
    ask("onnx", "torchscript")
    found = ask("torchscript", "onnx-int4", "onnx")
    assert [each.state for each in found] == ["unchanged", "written", "unchanged"]
    assert prover.asked == [["onnx", "torchscript"], ["onnx-int4"]]


def test_another_export_in_the_way_is_left_alone(ask: Any, tmp_path: Path) -> None:
    ask("onnx")
    with pytest.raises(Conflict, match="something else"):
        ask("onnx", options={"block_size": 32})
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/file").write_text("mine")
    with pytest.raises(Conflict, match="exists already"):
        ask("onnx", output=tmp_path / "mine")
    assert (tmp_path / "mine/file").read_text() == "mine"


def test_an_export_whose_bytes_changed_is_no_no_op(ask: Any, tmp_path: Path) -> None:
    ask("onnx")
    (tmp_path / "out/model.onnx").write_text("blocks of 46")
    with pytest.raises(Corrupt, match=r"model.onnx have changed"):
        ask("onnx")


def test_what_fails_its_proof_is_refused_and_the_rest_is_kept(
    ask: Any, prover: Prover, tmp_path: Path
) -> None:
    prover.failing = {"onnx-int4"}
    good, bad = ask("onnx", "onnx-int4")
    assert (good.state, bad.state) == ("written", "refused")
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["onnx"]


def test_what_is_kept_unverified_says_so(ask: Any, prover: Prover, tmp_path: Path) -> None:
    prover.failing = {"onnx"}
    [kept] = ask("onnx", allow_unverified=True)
    assert kept.state == "written"
    proof = read_proof(tmp_path / "out")
    assert proof is not None
    assert proof.is_allowed
    assert not proof.passed
    assert "off by 7" in (tmp_path / "out/README.md").read_text()
    with pytest.raises(Corrupt, match="its proof failed: it is off by 7"):
        ask("onnx")


def test_what_was_never_verified_is_verified_when_asked_again(ask: Any, prover: Prover) -> None:
    [first] = ask("onnx", is_verified=False)
    assert first.proof is None
    assert prover.asked == []
    [second] = ask("onnx")
    assert (second.state, second.proof is not None) == ("unchanged", True)
    assert "was not verified" not in (second.folder / "README.md").read_text()


def test_prompts_that_were_given_are_what_it_is_proven_on(
    ask: Any, form: FakeForm, prover: Prover, tmp_path: Path
) -> None:
    """Also where the export is there, proven on others; bad ones are named before any work."""
    given = tmp_path / "rows.jsonl"
    given.write_text('{"text": 5}\n')
    with pytest.raises(InvalidData, match=r"rows.jsonl:1: \"text\" is no string"):
        ask("onnx", prompts=given)
    assert form.num_writes == 0
    ask("onnx")
    given.write_text('{"text": "a"}\n')
    [again] = ask("onnx", prompts=given)
    assert (again.state, len(prover.asked), form.num_writes) == ("unchanged", 2, 1)


def test_a_proof_that_does_not_fit_is_refused_before_work(
    ask: Any, form: FakeForm, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Little:
        available = 1e6

    monkeypatch.setattr("psutil.virtual_memory", Little)
    with pytest.raises(InvalidInput, match="GB of memory"):
        ask("onnx")
    assert form.num_writes == 0
    ask("onnx", is_verified=False)


def test_a_full_disk_is_seen_before_and_on_the_way(
    ask: Any, form: FakeForm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    form.error = OSError(28, "No space left on device", str(tmp_path / "out/model.onnx"))
    with pytest.raises(StorageFull, match="no space is left"):
        ask("onnx")
    assert not (tmp_path / "out").exists()
    form.wanted_bytes = 10**18
    with pytest.raises(StorageFull, match=r"take about 1,000,000,000,006 MB with their proof"):
        ask("onnx")
    assert form.num_writes == 1


@pytest.mark.parametrize("error", [RuntimeError("a bug"), KeyboardInterrupt()])
def test_a_failure_on_the_way_leaves_nothing(
    ask: Any, form: FakeForm, tmp_path: Path, error: BaseException
) -> None:
    form.error = error
    with pytest.raises(type(error)):
        ask("onnx", "torchscript")
    assert not (tmp_path / "out").exists()


def test_a_library_that_hides_a_full_disk(
    ask: Any, form: FakeForm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """safetensors, onnx and torch raise errors of their own, without a number."""
    plenty, little = (shutil._ntuple_diskusage(1, 1, free) for free in (10**12, 9))
    free = iter((plenty, little))
    monkeypatch.setattr(shutil, "disk_usage", lambda path: next(free))
    form.error = RuntimeError("unexpected pos\n576")
    with pytest.raises(StorageFull, match=r"ran out of space \(unexpected pos 576\)"):
        ask("onnx")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("output", ["file/out", "file/a/out", "x" * 250, "x" * 300])
def test_an_output_that_can_be_no_folder(ask: Any, tmp_path: Path, output: str) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(InvalidInput, match="cannot be a folder"):
        ask("onnx", output=tmp_path / output)


def test_what_a_killed_export_left_goes_with_the_next(ask: Any, tmp_path: Path) -> None:
    code = (
        "import sys, time; from pathlib import Path; from artifacts.scratch import scratch_folder\n"
        "with scratch_folder(Path(sys.argv[1]), '.out.part-') as folder:\n"
        "    (folder / 'model.onnx').write_text('half'); print('there', flush=True); time.sleep(99)"
    )
    child = subprocess.Popen([sys.executable, "-c", code, tmp_path], stdout=subprocess.PIPE)
    assert child.stdout is not None
    assert child.stdout.readline()
    child.kill()
    child.wait()
    assert len([path for path in tmp_path.iterdir() if path.name.startswith(".out.part-")]) == 1
    ask("onnx")


def test_somebody_else_was_faster(
    ask: Any, form: FakeForm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def publish(folder: Path, output: Path) -> None:
        output.mkdir()
        (output / "theirs").write_text("theirs")
        folder.rename(output)

    monkeypatch.setattr(run, "publish_folder", publish)
    with pytest.raises(Conflict, match="meanwhile"):
        ask("onnx")
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["theirs"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"formats": ("onnx", "onnx")}, "named twice"),
        ({"formats": ("onnx",), "options": {"keep_head": True}}, "--keep-head means nothing"),
        ({"formats": ("onnx",), "options": {"block_size": 7}}, "block_size=7"),
        ({"formats": ("onnx",), "merge": "dequantized"}, "nothing to dequantise"),
        ({"formats": ("adapter",), "merge": "original"}, "--merge means nothing to adapter"),
        (
            {"formats": ("onnx",), "prompts": Path("rows.jsonl"), "is_verified": False},
            "--prompts are for the proof",
        ),
    ],
)
def test_what_makes_no_sense_is_named(ask: Any, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidInput, match=message):
        ask(*changes.pop("formats"), **changes)


def test_another_base_is_refused(ask: Any, tmp_path: Path) -> None:
    with pytest.raises(AdapterRejected):
        ask("onnx", base=None)  # the embedded one
    assert not (tmp_path / "out").exists()


def test_a_base_that_is_an_export_is_refused(ask: Any, tmp_path: Path) -> None:
    ask("onnx")
    with pytest.raises(InvalidInput, match="is an export"):
        ask("onnx", output=tmp_path / "again", base=str(tmp_path / "out"))


def test_unknown_adapters_are_named(tiny_base: Path, tmp_path: Path, form: FakeForm) -> None:
    asked = Asked("No Name", tmp_path / "out", ("onnx",), str(tiny_base))
    with pytest.raises(NotFound, match="neither a folder"):
        export_forms(asked, lambda *_: None)


@pytest.mark.parametrize("size", ["nan", "inf", "0", "-1"])
def test_a_shard_size_that_is_none_is_one_line(adapter: Path, tmp_path: Path, size: str) -> None:
    from typer.testing import CliRunner

    from loraloop import app

    args = ["export", str(adapter), "--output", str(tmp_path / "out"), "--shard-gb", size]
    result = CliRunner().invoke(app, args)
    assert (result.exit_code, result.output.count("\n")) == (1, 1)
    assert f"shard_gb={float(size):g} must be above 0" in result.output


def test_the_command_says_what_it_did(
    adapter: Path, tiny_base: Path, tmp_path: Path, form: FakeForm, prover: Prover
) -> None:
    from typer.testing import CliRunner

    from loraloop import app

    prover.failing = {"onnx-int4"}
    args = ["export", str(adapter), "--model", str(tiny_base), "--output", str(tmp_path / "out")]
    result = CliRunner().invoke(app, [*args, "--format", "onnx", "--format", "onnx-int4"])
    assert result.exit_code == 1
    assert "onnx: written, verified on 32 prompts" in result.output
    assert "onnx-int4 was not kept: it is off by 7" in result.output
    again = CliRunner().invoke(app, [*args, "--format", "onnx"])  # a folder of folders is there
    assert (again.exit_code, again.output.count("\n")) == (1, 1)
