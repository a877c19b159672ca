"""Proofs on the files on disk: a fresh process, what it says, and what becomes of its failures."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from artifacts.errors import Conflict, Corrupt, InvalidInput, LoraloopError, NotFound
from artifacts.exported.record import RECORD_FILE, ExportRecord, file_entries, read_record
from artifacts.heldout import HeldOutRow
from artifacts.models import copy_without_weights
from artifacts.safe_write import write_json
from export.proof import cli
from export.proof.measure import measure
from export.proof.process import ProofAsk, prove_in_fresh_process
from export.proof.prompts import Questions, find_questions
from export.proof.report import Proof, proof_section, read_proof, write_proof
from export.proof.run import prove_all
from export.source import merged_model, open_source

ROOT = Path(__file__).parents[3]


@pytest.fixture(scope="session")
def merged(tiny_base: Path, adapter: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A merged export of the tiny base, float32."""
    folder = tmp_path_factory.mktemp("exports") / "merged"
    folder.mkdir()
    source = open_source(str(adapter), str(tiny_base))
    copy_without_weights(source.base, folder)
    merged_model(source).save_pretrained(folder)
    write_record(folder, adapter, tiny_base)
    return folder


@pytest.fixture(autouse=True)
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    """In this process, two short rows and four steps; a fresh one asks what it always asks."""

    def find(*asked: Any) -> Questions:
        found = find_questions(*asked)
        rows = [HeldOutRow(row.token_ids[: 9 + i], 9 + i) for i, row in enumerate(found.rows[:2])]
        return Questions(tuple(rows), found.facts)

    monkeypatch.setattr("export.proof.run.find_questions", find)
    monkeypatch.setattr("export.proof.reference._STEPS", 5)
    monkeypatch.setattr("export.proof.prove.measure", partial(measure, steps=1))


@pytest.fixture
def folder(merged: Path, tmp_path: Path) -> Path:
    return shutil.copytree(merged, tmp_path / "merged")


def write_record(folder: Path, adapter: Path, base: Path, **changes: Any) -> None:
    source = open_source(str(adapter), str(base))
    record = ExportRecord(
        format="merged",
        adapter_id=source.adapter_id,
        adapter_hash=source.weights.content_hash,
        adapter_source=str(adapter),
        base_id=source.base.id,
        base_fingerprint=source.base.fingerprint,
        base_source=str(base),
        quantization="none",
        merge="original",
        fingerprint="0" * 64,
        options={},
        settings={},
        versions={},
        created_at="2026-01-01T00:00:00+00:00",
        files=file_entries(folder),
    )
    changed = record.model_copy(update=changes)
    write_json(folder / RECORD_FILE, changed.model_dump(mode="json"))


def prove(*folders: Path, ask: ProofAsk | None = None) -> list[Proof]:
    """In this process: another one costs seconds."""
    found: list[Proof] = []
    prove_all(folders, ask or ProofAsk(), lambda *_: None, lambda _, proof: found.append(proof))
    return found


def test_a_fresh_process_proves_several_folders_and_tells(folder: Path, tmp_path: Path) -> None:
    other = shutil.copytree(folder, tmp_path / "other")
    told: list[tuple[int, int, str]] = []
    asked = tmp_path / "asked.txt"
    asked.write_text("\n".join("a question"[: 3 + i % 7] for i in range(32)))
    ask = ProofAsk(prompts=asked)
    proofs = prove_in_fresh_process([folder, other], ask, lambda *each: told.append(each))
    assert [proof.passed for proof in proofs] == [True, True]
    assert [read_proof(folder), read_proof(other)] == proofs
    figures, measured = proofs[0].figures, proofs[0].measured
    assert proofs[1].figures == figures
    assert 0 < figures["max_logit_diff"] <= proofs[0].tolerances["max_logit_diff"] == 1e-4
    assert (figures["greedy_agreement"], figures["equal_answers"]) == (1, 1)
    assert figures["num_decode_tokens"] == 32 * 33
    assert measured["size_bytes"] == sum(
        path.stat().st_size for path in folder.iterdir() if path.name != "proof.json"
    )
    for name in ("load_s", "ttft_p50_s", "tokens_per_s_1", "tokens_per_s_8", "peak_memory_bytes"):
        assert measured[name] > 0
    assert measured["ttft_p50_s"] <= measured["ttft_p90_s"]
    assert [done for done, _, _ in told] == list(range(1, len(told) + 1))
    assert told[-1] == (2 * 4 + 2 * 5, 2 * 4 + 2 * 5, "merged: comparing")


def test_a_child_that_lost_its_parent_ends(folder: Path) -> None:
    """Killed as by SIGKILL, the parent cannot tell it: its end of the pipe closes."""
    child = subprocess.Popen(
        [sys.executable, "-m", "export.proof", "--end-with-stdin", str(folder)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert child.stdin is not None
    child.stdin.close()
    assert child.wait(timeout=30) == 1
    assert read_proof(folder) is None


def fake(monkeypatch: pytest.MonkeyPatch, program: str) -> None:
    monkeypatch.setattr("export.proof.process._command", lambda *_: [sys.executable, "-c", program])


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("Corrupt", Corrupt),
        ("InvalidInput", InvalidInput),
        ("AdapterRejected", InvalidInput),
        ("Conflict", Conflict),
        ("Unheard", LoraloopError),
    ],
)
def test_what_the_child_refuses_is_raised_here(
    name: str, kind: type[LoraloopError], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    said = {"event": "failed", "error": name, "message": "no good; do better", "param": "model"}
    fake(
        monkeypatch, f"print('noise of a library'); print({json.dumps(said)!r}.replace('null', ''))"
    )
    with pytest.raises(kind, match=r"^no good; do better$"):
        prove_in_fresh_process([tmp_path], ProofAsk(), lambda *_: None)


def test_the_last_words_of_a_crash_are_told(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    fake(monkeypatch, "import sys; sys.exit('first\\nIllegalInstruction: at last')")
    with pytest.raises(LoraloopError, match=f"{tmp_path} ended with exit code 1: Illegal.*at last"):
        prove_in_fresh_process([tmp_path], ProofAsk(), lambda *_: None)
    fake(monkeypatch, "import os; os.kill(os.getpid(), 9)")
    with pytest.raises(LoraloopError, match=r"SIGKILL \(out of memory\?\): it said"):
        prove_in_fresh_process([tmp_path], ProofAsk(), lambda *_: None)


CRASHING = """
import json, os, pathlib, sys
proof = {proof!r}
for folder in sys.argv[1:]:
    print(json.dumps({{"event": "begun", "folder": folder, "proof": proof}}), flush=True)
    if folder.endswith("aborts"):
        sys.exit("Traceback\\nRuntimeError: node Softmax_7")
    if folder.endswith("dies"):
        os.kill(os.getpid(), {signal})
    pathlib.Path(folder, "tries").open("a").write("x")
    done = dict(proof, figures={{"max_logit_diff": 0.0}})
    print(json.dumps({{"event": "proof", "folder": folder, "proof": done}}), flush=True)
os.kill(os.getpid(), {signal} if folder.endswith("last") else 0)
"""


def test_a_form_that_crashes_its_process_fails_and_the_others_are_proven(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, folder: Path
) -> None:
    """Also when the process dies once all is done, as libraries do when the interpreter ends."""
    known = begun_of(folder)
    program = CRASHING.format(proof=known.model_dump(mode="json"), signal=int(signal.SIGSEGV))
    folders = [tmp_path / name for name in ("one", "dies", "two", "aborts", "last")]
    for each in folders:
        each.mkdir()
    command = [sys.executable, "-c", program]
    monkeypatch.setattr(
        "export.proof.process._command", lambda some, _: [*command, *map(str, some)]
    )
    proofs = prove_in_fresh_process(folders, ProofAsk(), lambda *_: None)
    assert [proof.passed for proof in proofs] == [True, False, True, False, True]
    assert proofs[1].failures[0].startswith("the process that computed it ended with SIGSEGV: it")
    assert (
        proofs[3]
        .failures[0]
        .endswith("exit code 1: RuntimeError: node Softmax_7; try another form")
    )
    assert [read_proof(folders[i]) for i in (1, 3)] == [proofs[1], proofs[3]]
    for i in (0, 2, 4):
        assert (folders[i] / "tries").read_text() == "x"


def begun_of(folder: Path) -> Proof:
    """What is told of each form before its own code runs."""
    told: list[tuple[str, Proof]] = []
    prove_all(
        [folder],
        ProofAsk(),
        lambda *_: None,
        lambda _, proof: told.append(("done", proof)),
        lambda _, proof: told.append(("begun", proof)),
    )
    assert [what for what, _ in told] == ["begun", "done"]
    assert told[0][1].prompts == told[1][1].prompts
    assert not told[0][1].figures
    return told[0][1]


def test_whoever_is_interrupted_leaves_no_child(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    said = {"event": "progress", "done": 1, "total": 2, "what": "reference"}
    program = (
        "import os, pathlib, time; "
        f"pathlib.Path({str(tmp_path / 'pid')!r}).write_text(str(os.getpid())); "
        f"print({json.dumps(said)!r}, flush=True); time.sleep(60)"
    )
    fake(monkeypatch, program)

    def interrupt(*_: Any) -> None:
        raise KeyboardInterrupt

    start = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        prove_in_fresh_process([tmp_path], ProofAsk(), interrupt)
    assert time.monotonic() - start < 20
    with pytest.raises(ProcessLookupError):
        os.kill(int((tmp_path / "pid").read_text()), 0)


def test_another_base_or_adapter_is_named(folder: Path, tiny_base: Path, adapter: Path) -> None:
    write_record(folder, adapter, tiny_base, base_fingerprint="f" * 64)
    with pytest.raises(InvalidInput, match=f"{tiny_base} has .* made from tiny with ffffffffffff"):
        prove(folder)
    write_record(folder, adapter, tiny_base, adapter_hash="a" * 64)
    with pytest.raises(InvalidInput, match=f"{adapter} has .* made from random with aaaaaaaaaaaa"):
        prove(folder)


def test_base_and_adapter_may_be_given(folder: Path, tiny_base: Path, adapter: Path) -> None:
    """Where they lie elsewhere now than the record says."""
    write_record(folder, adapter, tiny_base, base_source="/gone", adapter_source="/gone/too")
    with pytest.raises(
        NotFound, match=r"/gone/too.*made of random and tiny: .* with --adapter and"
    ):
        prove(folder)
    [proof] = prove(folder, ask=ProofAsk(base=str(tiny_base), adapter=str(adapter)))
    assert proof.passed


def edit_weights(folder: Path, change: Callable[[dict[str, torch.Tensor]], None]) -> None:
    from safetensors.torch import load_file, save_file

    path = folder / "model.safetensors"
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path, metadata={"format": "pt"})


def test_a_weight_that_was_changed_fails_on_disk(
    folder: Path, tiny_base: Path, adapter: Path
) -> None:
    def change(tensors: dict[str, torch.Tensor]) -> None:
        tensors["model.layers.1.mlp.up_proj.weight"].mul_(1.01)

    edit_weights(folder, change)
    write_record(folder, adapter, tiny_base)
    [proof] = prove(folder)
    assert proof.failures[0].startswith("the largest difference of a logit is ")
    assert not proof.is_allowed
    write_proof(folder, proof.model_copy(update={"is_allowed": True}))
    assert prove(folder)[0].is_allowed  # whoever wanted it all the same still does


def test_a_tokenizer_of_another_model_fails(folder: Path, tiny_base: Path, adapter: Path) -> None:
    path = folder / "tokenizer.json"
    tokenizer = json.loads(path.read_text(encoding="utf-8"))
    vocab = tokenizer["model"]["vocab"]
    vocab["a"], vocab["b"] = vocab["b"], vocab["a"]
    path.write_text(json.dumps(tokenizer), encoding="utf-8")
    write_record(folder, adapter, tiny_base)
    [proof] = prove(folder)
    [failure] = proof.failures
    assert failure.startswith("texts that the folder's tokenizer splits anew is ")


def test_a_vocabulary_of_another_size_fails(folder: Path, tiny_base: Path, adapter: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    config["vocab_size"] += 8
    (folder / "config.json").write_text(json.dumps(config))

    def change(tensors: dict[str, torch.Tensor]) -> None:
        name = "model.embed_tokens.weight"
        tensors[name] = torch.cat([tensors[name], torch.zeros(8, tensors[name].shape[1])])

    edit_weights(folder, change)
    write_record(folder, adapter, tiny_base)
    [proof] = prove(folder)
    assert proof.failures == (
        "it answers over 270 tokens, the adapter over 262: it was made from another model",
    )


def test_what_cannot_be_opened_fails(folder: Path, tiny_base: Path, adapter: Path) -> None:
    (folder / "model.safetensors").write_bytes(b"nothing of the kind")
    write_record(folder, adapter, tiny_base)
    [proof] = prove(folder)
    assert proof.failures[0].startswith("it cannot be opened: ")


def test_too_little_memory_is_said_first(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Little:
        available = 1e6

    monkeypatch.setattr("psutil.virtual_memory", Little)
    with pytest.raises(InvalidInput, match=r"takes 0\.\d GB of memory; 0\.0 GB are free"):
        prove(folder)


def test_verify_names_what_changed_and_fails_for_it(
    folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    other = shutil.copytree(folder, tmp_path / "other")
    with (other / "generation_config.json").open("a") as stream:
        stream.write("\n")
    asked: list[Path] = []

    def in_this_process(folders: list[Path], ask: ProofAsk, _: Any) -> list[Proof]:
        asked.extend(folders)
        return prove(*folders, ask=ask)

    monkeypatch.setattr(cli, "prove_in_fresh_process", in_this_process)
    assert cli.verify_and_tell([folder, other], ProofAsk()) == 1
    out, err = capsys.readouterr()
    assert asked == [folder]
    assert f"the bytes of {other / 'generation_config.json'} have changed" in err
    heading, line = out.splitlines()
    assert heading.split()[:2] == ["format", "verdict"]
    assert line.split()[:2] == ["merged", "passed"]
    assert cli.verify_and_tell([folder], ProofAsk()) == 0
    proof = read_proof(folder)
    assert proof is not None
    assert proof_section(proof) in (folder / "README.md").read_text(encoding="utf-8")
    assert read_record(folder).files.keys() == file_entries(folder).keys()  # still unchanged


def test_verify_fails_for_a_proof_that_fails(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    [proof] = prove(folder)
    failed = proof.model_copy(update={"failures": ("it is 5 (allowed: 3)",)})
    monkeypatch.setattr(cli, "prove_in_fresh_process", lambda *_: [failed])
    assert cli.verify_and_tell([folder], ProofAsk()) == 1
    out, err = capsys.readouterr()
    assert "FAILED" in out
    assert "it is 5 (allowed: 3)" in err
    assert "- it is 5 (allowed: 3)" in (folder / "README.md").read_text(encoding="utf-8")
