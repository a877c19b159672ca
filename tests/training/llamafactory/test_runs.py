"""LLaMA-Factory's files through the command line, unchanged but for the model's path.

LoRA SFT, then DPO from its adapter, then the merge: each finds what the one before left where
LLaMA-Factory leaves it.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from artifacts.base import open_base
from artifacts.database import Database
from artifacts.exported.record import read_record
from artifacts.home import Home
from artifacts.registry import Registry
from export.proof.report import read_proof
from loraloop import app
from training.run import EXIT_UNFIT

FILES = Path(__file__).parent / "files"
SHARED = Path(__file__).resolve().parents[4] / "shared" / "data" / "llamafactory"


def small_data(folder: Path) -> None:
    """The same names with rows of our own, so that the files run everywhere."""
    rows = [{"instruction": f"数到 {n}。", "output": f"好的：{n}，就是。"} for n in range(60)]
    pairs = [
        {
            "conversations": [{"from": "human", "value": f"Is {n} large?"}],
            "chosen": {"from": "gpt", "value": f"{n} is what it is."},
            "rejected": {"from": "gpt", "value": "No idea, sorry."},
        }
        for n in range(30)
    ]
    columns = {"messages": "conversations", "chosen": "chosen", "rejected": "rejected"}
    ranking = {"ranking": True, "formatting": "sharegpt", "columns": columns}
    files = {
        "identity.json": rows[:20],
        "alpaca_zh_demo.json": rows[20:],
        "dpo_zh_demo.json": pairs,
        "c4_demo.json": [{"text": f"Tea number {n} is green. " * 20} for n in range(12)],
        "dataset_info.json": {
            "identity": {"file_name": "identity.json"},
            "alpaca_zh_demo": {"file_name": "alpaca_zh_demo.json"},
            "dpo_zh_demo": {"file_name": "dpo_zh_demo.json", **ranking},
            "c4_demo": {"file_name": "c4_demo.json", "columns": {"prompt": "text"}},
        },
    }
    folder.mkdir()
    for name, content in files.items():
        (folder / name).write_text(json.dumps(content, ensure_ascii=False), encoding="utf-8")


def run(command: str, file: str, base: Path) -> Result:
    text = (FILES / file).read_text(encoding="utf-8")
    Path(file).write_text(text.replace("MODEL", str(base)), encoding="utf-8")
    return CliRunner().invoke(app, [command, file])


@pytest.mark.parametrize("data", ["ours", "theirs"])
def test_sft_dpo_and_merge(
    data: str, tiny_base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LORALOOP_HOME", str(tmp_path / "home"))
    if data == "ours":
        small_data(tmp_path / "data")
    elif SHARED.is_dir():
        (tmp_path / "data").symlink_to(SHARED)
    else:
        pytest.skip(f"there is no {SHARED}")
    for file, name in (("lora_sft.yaml", "tiny-lora-sft"), ("lora_dpo.yaml", "tiny-lora-dpo")):
        result = run("train", file, tiny_base)
        # A base that knows nothing may fail its gate on a handful of their rows; it has run then.
        assert result.exit_code in ((0,) if data == "ours" else (0, EXIT_UNFIT)), result.stderr
        assert result.stderr.count("template: the base's own chat template") == 1
        home = Home.open(tmp_path / "home")
        version = Registry(home, Database(home.database_url)).get(name, 1)
        assert version.manifest.rank == 8
        kept = tmp_path / "saves/tiny/lora" / name[-3:] / "adapter_model.safetensors"
        assert kept.read_bytes() == (version.path / "adapter_model.safetensors").read_bytes()
    assert "of the rows are held back" in result.stderr
    result = run("export", "merge.yaml", tiny_base)
    assert result.exit_code == 0, result.output + result.stderr
    merged = open_base(tmp_path / "output" / "tiny_lora_dpo")
    assert merged.fingerprint != open_base(tiny_base).fingerprint
    assert read_record(merged.path).adapter_hash == version.content_hash
    proof = read_proof(merged.path)
    assert proof is not None
    assert proof.passed
    assert proof.prompts.source.startswith("held-out rows of dpo")  # found by their content


def test_a_whole_model_lies_in_output_dir_and_is_a_base(
    tiny_base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LORALOOP_HOME", str(tmp_path / "home"))
    small_data(tmp_path / "data")
    result = run("train", "full_sft.yaml", tiny_base)
    assert result.exit_code == 0, result.stderr
    found = open_base(tmp_path / "saves" / "tiny" / "full" / "sft")
    assert found.fingerprint == open_base(tmp_path / "home/models/tiny-full-sft@1").fingerprint
    assert found.fingerprint != open_base(tiny_base).fingerprint


def test_plain_text_is_learned_whole(
    tiny_base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LORALOOP_HOME", str(tmp_path / "home"))
    small_data(tmp_path / "data")
    result = run("train", "lora_pretrain.yaml", tiny_base)
    assert result.exit_code == 0, result.stderr
    assert "truncated" not in result.stderr
    home = Home.open(tmp_path / "home")
    version = Registry(home, Database(home.database_url)).get("tiny-lora-pretrain", 1)
    assert version.manifest.settings["packing"] is True
