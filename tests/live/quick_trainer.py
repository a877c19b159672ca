"""Stands for ``python -m training`` where a test has no time: the real one's files, signals, events
and registry, but no model.

The first line of its data says what to do: {"steps": n, "step_s": s, "adapter": …, "draft": {…}} (a
PEFT folder and what the registry shall know about it).
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
import time
from pathlib import Path
from typing import Any

import yaml

SAVE_EVERY = 2  # steps
INTERRUPTED = 3


def main() -> int:
    stopped: list[int] = []
    signal.signal(signal.SIGTERM, lambda number, frame: stopped.append(number))
    config = yaml.safe_load(Path(sys.argv[1]).read_text(encoding="utf-8"))
    order = json.loads(Path(config["data"][0]).read_text(encoding="utf-8").splitlines()[0])
    work = Path(config["output_dir"])
    work.mkdir(exist_ok=True)
    first = last_step(work)
    resumed_from = f"checkpoint-{first}" if first else None
    emit(event="started", total_steps=order["steps"], resumed_from=resumed_from, num_train=1)
    for step in range(first + 1, order["steps"] + 1):
        time.sleep(order["step_s"])
        emit(event="progress", step=step, total_steps=order["steps"], loss=1.0, eta_s=1)
        if stopped or step % SAVE_EVERY == 0:
            save(work, step)
        if stopped:
            emit(event="interrupted", step=step)
            return INTERRUPTED
    emit(event="publishing")
    emit(event="published", adapter=publish(config, order), metrics={}, duration_s=1)
    return 0


def last_step(work: Path) -> int:
    """Of the last whole checkpoint, 0 without one."""
    whole = (path.parent for path in work.glob("checkpoint-*/trainer_state.json"))
    return max((int(path.name[11:]) for path in whole), default=0)


def save(work: Path, step: int) -> None:
    folder = work / f"checkpoint-{step}"
    folder.mkdir(exist_ok=True)
    (folder / "adapter.bin").write_bytes(b"x" * 10_000)
    (folder / "trainer_state.json").write_text("{}")
    (work / "checkpoints" / f"step-{step}").mkdir(parents=True, exist_ok=True)  # what is listed
    emit(event="checkpoint", step=step, path=str(folder))


def publish(config: dict[str, Any], order: dict[str, Any]) -> str:
    from artifacts.database import Database
    from artifacts.home import Home
    from artifacts.manifest import ManifestDraft
    from artifacts.registry import Registry
    from artifacts.scratch import scratch_folder

    home = Home.open(config["home"])
    registry = Registry(home, Database(os.environ["LORALOOP_DATABASE_URL"]))
    draft = {**order["draft"], "settings": {"description": config["description"]}}
    with scratch_folder(home.tmp, "train-") as scratch:
        shutil.copytree(order["adapter"], scratch, dirs_exist_ok=True)
        return registry.publish(config["name"], scratch, ManifestDraft(**draft)).id


def emit(**event: Any) -> None:
    print(json.dumps(event), flush=True)


if __name__ == "__main__":
    sys.exit(main())
