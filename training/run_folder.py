"""A run's ``output_dir``: its lock, its checkpoints, its identity, its logs. No torch.

One run at a time works in a folder. Checkpoints of a run with other settings are refused by name,
because continuing them would give an adapter that no configuration describes.
"""

from __future__ import annotations

import fcntl
import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

from artifacts.manifest import CARD_FILE, MANIFEST_FILE
from artifacts.safe_write import write_json
from training.errors import InvalidConfig

_IDENTITY_FILE = "run.json"
_LOCK_FILE = "lock"
_ADAPTER_FILES = ("adapter_config.json", "adapter_model.safetensors")
_STATE_FILE = "trainer_state.json"  # transformers writes it last into a checkpoint


class RunFolder:
    """The work folder of one run; ``logs`` (TensorBoard's files) and ``plot`` outlive the run."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.logs = path / "logs"
        self.plot = path / "loss.png"

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Makes the folder and holds it. Raises InvalidConfig if another run does, or on no access.

        The lock goes with the process, however it ends.
        """
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            stream = (self.path / _LOCK_FILE).open("w")
        except OSError as error:
            raise InvalidConfig(
                f"cannot work in output_dir={self.path}: {error.strerror}", param="output_dir"
            ) from error
        with stream:
            try:
                fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise InvalidConfig(
                    f"another run is working in output_dir={self.path}; wait for it or choose "
                    "another folder",
                    param="output_dir",
                ) from error
            yield

    def checkpoint_for(
        self, resume: bool | Literal["overwrite"] | Path, identity: dict[str, Any]
    ) -> Path | None:
        """The checkpoint to continue from, None for a run from the start.

        Raises InvalidConfig for a checkpoint of other settings, for a named one that is not whole,
        and for checkpoints in the way of a run that does not resume.
        """
        if resume == "overwrite":
            self.discard_checkpoints()
            resume = False
        checkpoints = self._checkpoints()
        if resume is False:
            if checkpoints:
                raise InvalidConfig(
                    f"output_dir={self.path} holds {checkpoints[-1].name} of an earlier run; "
                    "resume=true continues it, resume=overwrite deletes it",
                    param="resume",
                )
            chosen = None
        elif resume is True:
            chosen = checkpoints[-1] if checkpoints else None
        else:
            chosen = resume
            if not _is_whole(chosen):
                raise InvalidConfig(f"resume={resume} is not a whole checkpoint", param="resume")
        if chosen is not None:
            _check_identity(chosen.parent / _IDENTITY_FILE, identity)
            _check_best(chosen)
        write_json(self.path / _IDENTITY_FILE, identity)
        return chosen

    def last_step(self) -> int:
        """Step of the last whole checkpoint, 0 without one."""
        checkpoints = self._checkpoints()
        return int(checkpoints[-1].name[11:]) if checkpoints else 0

    def discard_checkpoints(self) -> None:
        """What a published version no longer needs; the logs stay."""
        for path in self.path.glob("checkpoint-*"):
            shutil.rmtree(path)
        (self.path / _IDENTITY_FILE).unlink(missing_ok=True)

    def take_copy(self, published: Path) -> None:
        """What was published, where other trainers leave it: an adapter's files, or links to a
        whole model's, which are large. Each file is there wholly or not at all."""
        is_adapter = (published / _ADAPTER_FILES[0]).is_file()
        own = (MANIFEST_FILE, CARD_FILE)
        names = [path.name for path in published.iterdir() if path.name not in own]
        for name in _ADAPTER_FILES if is_adapter else names:
            part = self.path / f".{name}.part"
            part.unlink(missing_ok=True)
            if is_adapter:
                shutil.copyfile(published / name, part)
            else:
                part.symlink_to(published / name)
            part.replace(self.path / name)

    def _checkpoints(self) -> list[Path]:
        """Whole checkpoints, oldest first; one torn by a kill does not count."""
        found = [p for p in self.path.glob("checkpoint-*") if p.name[11:].isdigit()]
        return sorted(filter(_is_whole, found), key=lambda path: int(path.name[11:]))


def read_state(checkpoint: Path) -> dict[str, Any]:
    """The trainer state stored in a whole checkpoint."""
    state: dict[str, Any] = json.loads((checkpoint / _STATE_FILE).read_text(encoding="utf-8"))
    return state


def _is_whole(checkpoint: Path) -> bool:
    try:
        read_state(checkpoint)
    except (OSError, ValueError):
        return False
    return True


def _check_best(checkpoint: Path) -> None:
    """Without the best weights so far, the end of the run could not choose among all of them."""
    best = read_state(checkpoint).get("best_model_checkpoint")
    if best is not None and not _is_whole(Path(best)):
        raise InvalidConfig(
            f"{checkpoint.name} refers to the better {best}, which is gone; put that folder "
            "back or start over in another output_dir",
            param="resume",
        )


def _check_identity(path: Path, identity: dict[str, Any]) -> None:
    try:
        stored = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InvalidConfig(
            f"{path} is missing or unreadable, so nothing tells which settings made the checkpoint",
            param="resume",
        ) from error
    wanted = json.loads(json.dumps(identity))
    for key in sorted(wanted.keys() | stored.keys()):
        if wanted.get(key) != stored.get(key):
            raise InvalidConfig(
                f"the checkpoint was made with {key}={stored.get(key)!r}, this run asks for "
                f"{wanted.get(key)!r}; use the same settings or another output_dir",
                param=key,
            )
