"""Temporary folders last as long as their makers, and not much longer."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from artifacts.scratch import clear_scratch, scratch_folder

HOLD = """
import sys, time
from pathlib import Path
from artifacts.scratch import scratch_folder
with scratch_folder(Path(sys.argv[1]), "held-") as folder:
    (folder / "work").write_text("half done")
    print("holding", flush=True)
    time.sleep(60)
"""
CLEAR = """
import sys, time
from pathlib import Path
from artifacts.scratch import clear_scratch
print("clearing", flush=True)
while not (Path(sys.argv[1]).parent / "enough").exists():
    clear_scratch(Path(sys.argv[1]))
"""


def run(program: str, folder: Path) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", program, str(folder)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline()
    return process


def test_nothing_is_left_afterwards(tmp_path: Path) -> None:
    def fail_inside() -> None:
        with scratch_folder(tmp_path, "a-") as folder:
            (folder / "file").touch()
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail_inside()
    assert list(tmp_path.iterdir()) == []


def test_what_a_living_process_works_in_stays_and_what_a_killed_one_left_goes(
    tmp_path: Path,
) -> None:
    with run(HOLD, tmp_path) as holder:
        [root] = tmp_path.iterdir()
        assert clear_scratch(tmp_path) == []
        assert (root / "folder" / "work").read_text() == "half done"
        holder.send_signal(signal.SIGKILL)
        holder.wait()
    assert clear_scratch(tmp_path) == [root]
    assert list(tmp_path.iterdir()) == []


def test_what_somebody_else_put_there_gets_a_day(tmp_path: Path) -> None:
    for name in ("fresh", "old"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "work").touch()
        (tmp_path / f"{name}.file").touch()
    yesterday = time.time() - 25 * 3600
    for name in ("old", "old.file"):
        os.utime(tmp_path / name, (yesterday, yesterday))
    assert [path.name for path in clear_scratch(tmp_path)] == ["old", "old.file"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["fresh", "fresh.file"]


def test_what_was_left_empty_goes_at_once(tmp_path: Path) -> None:
    """A maker that is killed before it has locked its folder leaves this."""
    (tmp_path / "import-1").mkdir()
    assert [path.name for path in clear_scratch(tmp_path)] == ["import-1"]


def test_the_lock_is_the_last_to_go(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever is killed while it removes its folder leaves something that can be cleared."""
    removed: list[str] = []

    def remove(path: Path, ignore_errors: bool) -> None:
        removed.append(path.name)
        assert (root / "lock").exists()

    with scratch_folder(tmp_path, "a-") as folder:
        root = folder.parent
        monkeypatch.setattr("artifacts.scratch.shutil.rmtree", remove)
    assert removed == ["folder", root.name]


def test_clearing_never_takes_a_folder_that_is_being_made(tmp_path: Path) -> None:
    (home := tmp_path / "tmp").mkdir()
    with run(CLEAR, home) as clearing:
        try:
            until = time.monotonic() + 1.0
            while time.monotonic() < until:
                with scratch_folder(home, "a-") as folder:
                    (folder / "file").touch()
                    assert (folder / "file").exists()
        finally:
            (tmp_path / "enough").touch()
            clearing.wait(10)
