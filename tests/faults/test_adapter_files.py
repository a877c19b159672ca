"""An adapter's files are cut, deleted or overwritten: before, while and after it answers."""

from __future__ import annotations

import json
import logging
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from artifacts.adapter import WEIGHTS_FILE
from artifacts.registry import AdapterVersion
from tests.faults.conftest import Site, error_of

REPOSITORY = Path(__file__).resolve().parents[2]


def cut(weights: Path) -> None:
    with weights.open("r+b") as stream:  # in place: the same file, not another one of its name
        stream.truncate(weights.stat().st_size // 2)


def empty(weights: Path) -> None:
    with weights.open("r+b") as stream:
        stream.truncate(0)


def overwrite(weights: Path) -> None:
    weights.write_bytes(b"\xff" * weights.stat().st_size)


def change_one_bit(weights: Path) -> None:
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)


def delete_folder(weights: Path) -> None:
    shutil.rmtree(weights.parent)


def make_it_a_folder(weights: Path) -> None:
    weights.unlink()
    weights.mkdir()


Damage = Callable[[Path], None]
DAMAGES: list[Damage] = [
    cut,
    empty,
    overwrite,
    change_one_bit,
    Path.unlink,
    delete_folder,
    make_it_a_folder,
]


def damaged(site: Site, version: AdapterVersion, caplog: pytest.LogCaptureFixture) -> None:
    """A request for it fails, says why, and tells the operator what to do."""
    caplog.clear()
    message = error_of(site.chat(version.id), 500, "corrupt")
    assert message.startswith(f"Adapter {version.id} is damaged on disk (")
    [record] = [each for each in caplog.records if each.levelno == logging.ERROR]
    for part in (str(version.path), f"loraloop adapters verify {version.id}", "from a copy"):
        assert part in record.getMessage()


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_adapter_fails_alone_and_only_when_it_is_read(
    site: Site, damage: Damage, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    fresh, used = site.register("fresh", 1), site.register("used", 2)
    for version in (fresh, used):
        shutil.copytree(version.path, tmp_path / version.name)
    with site.traffic(site.base, "good", "used"):
        damage(fresh.path / WEIGHTS_FILE)
        damage(used.path / WEIGHTS_FILE)
        damaged(site, fresh, caplog)
        loaded = site.chat("used@1").json()["choices"][0]["message"]  # needs no disk
    with site.traffic("good"):
        assert site.admin("POST", "adapters/unload", {"id": "used@1"}).status_code == 200
        damaged(site, used, caplog)
        for version in (fresh, used):
            shutil.rmtree(version.path, ignore_errors=True)
            shutil.copytree(tmp_path / version.name, version.path)
        assert site.chat("used@1").json()["choices"][0]["message"] == loaded
        assert site.chat("fresh@1").status_code == 200


CHILD = """
import os, sys, threading
from pathlib import Path
from artifacts.adapter import read_adapter
from artifacts.errors import AdapterRejected

folder = Path(sys.argv[1])
weights = folder / "adapter_model.safetensors"
content, is_over, ends = weights.read_bytes(), False, set()

def disturb():
    with weights.open("r+b") as stream:
        while not is_over:
            os.truncate(stream.fileno(), len(content) // 2)
            os.pwrite(stream.fileno(), content, 0)

thread = threading.Thread(target=disturb)
thread.start()
for _ in range(40):
    try:
        read_adapter(folder)
        ends.add("whole")
    except AdapterRejected as error:
        ends.add(error.reason)
is_over = True
thread.join()
print(*sorted(ends))
"""


def test_a_file_cut_while_it_is_read_does_not_end_the_process(tmp_path: Path) -> None:
    """A page of a mapped file that is gone is SIGBUS: so nothing here is mapped."""
    prefix = "base_model.model.model.layers.0.mlp.down_proj.lora_"
    a, b = torch.ones(8, 200_000), torch.ones(200_000, 8)
    save_file({prefix + "A.weight": a, prefix + "B.weight": b}, tmp_path / WEIGHTS_FILE)
    config = {"peft_type": "LORA", "r": 8, "lora_alpha": 8}
    (tmp_path / "adapter_config.json").write_text(json.dumps(config))
    done = subprocess.run(
        [sys.executable, "-c", CHILD, str(tmp_path)],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, (done.returncode, done.stderr)
    assert "unreadable_weights" in done.stdout, "it was cut while being read"
