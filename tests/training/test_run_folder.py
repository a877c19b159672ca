"""What a run may find in its folder."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from training.errors import InvalidConfig
from training.run_folder import RunFolder

IDENTITY = {"rank": 4, "seed": 0}


def checkpoint(folder: RunFolder, step: int, state: str = '{"global_step": 1}') -> Path:
    path = folder.path / f"checkpoint-{step}"
    path.mkdir(parents=True)
    (path / "trainer_state.json").write_text(state, encoding="utf-8")
    return path


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    folder = RunFolder(tmp_path / "run")
    with folder.locked():
        assert folder.checkpoint_for(False, IDENTITY) is None
    return folder


def test_the_last_whole_checkpoint_is_taken_and_a_torn_one_is_not(folder: RunFolder) -> None:
    assert folder.checkpoint_for(True, IDENTITY) is None
    checkpoint(folder, 9)
    last = checkpoint(folder, 10)
    checkpoint(folder, 11, state='{"glob')
    assert folder.checkpoint_for(True, IDENTITY) == last
    assert folder.last_step() == 10


def test_a_new_run_does_not_train_over_checkpoints(folder: RunFolder) -> None:
    checkpoint(folder, 4)
    with pytest.raises(InvalidConfig, match="resume=true continues it"):
        folder.checkpoint_for(False, IDENTITY)
    folder.discard_checkpoints()
    assert folder.checkpoint_for(False, IDENTITY) is None


def test_overwrite_starts_over(folder: RunFolder) -> None:
    path = checkpoint(folder, 4)
    assert folder.checkpoint_for("overwrite", {**IDENTITY, "rank": 8}) is None
    assert not path.exists()
    assert folder.checkpoint_for(True, {**IDENTITY, "rank": 8}) is None


def test_a_checkpoint_of_other_settings_is_refused_by_name(folder: RunFolder) -> None:
    path = checkpoint(folder, 4)
    for resume in (True, path):
        with pytest.raises(InvalidConfig, match="made with rank=4, this run asks for 8"):
            folder.checkpoint_for(resume, {**IDENTITY, "rank": 8})


def test_a_checkpoint_whose_best_one_is_gone_is_refused(folder: RunFolder) -> None:
    best = folder.path / "checkpoint-2"
    checkpoint(folder, 4, state=json.dumps({"best_model_checkpoint": str(best)}))
    with pytest.raises(InvalidConfig, match="checkpoint-2, which is gone"):
        folder.checkpoint_for(True, IDENTITY)
    checkpoint(folder, 2)
    assert folder.checkpoint_for(True, IDENTITY) == folder.path / "checkpoint-4"


def test_a_named_checkpoint_must_be_whole(folder: RunFolder, tmp_path: Path) -> None:
    with pytest.raises(InvalidConfig, match="not a whole checkpoint"):
        folder.checkpoint_for(tmp_path / "checkpoint-9", IDENTITY)


def test_one_run_at_a_time(folder: RunFolder) -> None:
    with folder.locked(), pytest.raises(InvalidConfig, match="another run"), folder.locked():
        pass


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(InvalidConfig, match="output_dir="), RunFolder(tmp_path / "file").locked():
        pass
