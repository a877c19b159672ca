"""Stands for ``python -m training``: does what its data file says, in the real one's protocol.

A line of the data file is a step: {"emit": event}, {"raw": text}, {"stderr": text}, {"sleep": s},
{"wait": true} (until SIGTERM, then checkpoint and exit 3), {"ignore_sigterm": true},
{"lose_storage": message} (a checkpoint, then exit 4), {"kill": signal}, {"exit": code},
{"publish": true}, {"register": true} (publish without saying so), {"checkpoint": step},
{"keep": {"step": n, "folder": PEFT folder, "record": its checkpoint.json}},
{"touch": path}, {"fail": event with {data} for its file} (and exit 1), {"publishing": s} (says so
and takes its time), {"take_memory": bytes}, {"child_takes_memory": bytes}.
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


def main() -> int:
    config = yaml.safe_load(Path(sys.argv[1]).read_text(encoding="utf-8"))
    assert sys.argv[2:] == ["--progress", "json"]
    work = Path(config["output_dir"])
    work.mkdir(exist_ok=True)
    (work / "env.json").write_text(
        json.dumps({"config": config, "env": dict(os.environ), "nice": os.nice(0)})
    )
    for line in Path(config["data"][0]).read_text(encoding="utf-8").splitlines():
        (verb, argument), *rest = json.loads(line).items()
        assert not rest
        code: int | None = STEPS[verb](argument, config)
        if code is not None:
            return code
    return 0


def emit(event: dict[str, Any], config: dict[str, Any]) -> None:
    print(json.dumps(event), flush=True)


def raw(text: str, config: dict[str, Any]) -> None:
    sys.stdout.buffer.write(text.encode("utf-8", "surrogateescape") + b"\n")
    sys.stdout.flush()


def say(text: str, config: dict[str, Any]) -> None:
    print(text, file=sys.stderr, flush=True)


def sleep(seconds: float, config: dict[str, Any]) -> None:
    time.sleep(seconds)


def wait(_: bool, config: dict[str, Any]) -> int | None:
    """Runs until it is told to stop; a resumed run goes on at once."""
    saved = Path(config["output_dir"]) / "checkpoint-7"
    if saved.exists():
        return None
    stopped: list[int] = []
    signal.signal(signal.SIGTERM, lambda number, frame: stopped.append(number))
    emit({"event": "progress", "step": 1, "total_steps": 10, "loss": 2.0, "eta_s": 60}, config)
    while not stopped:
        time.sleep(0.01)
    checkpoint(7, config)
    emit({"event": "interrupted", "step": 7}, config)
    return 3


def lose_storage(message: str, config: dict[str, Any]) -> int | None:
    """Its disk fails behind a checkpoint; a resumed run goes on at once."""
    if (Path(config["output_dir"]) / "checkpoint-7").exists():
        return None
    checkpoint(7, config)
    emit({"event": "failed", "code": "storage", "message": message, "rows": []}, config)
    return 4


def ignore_sigterm(_: bool, config: dict[str, Any]) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    emit({"event": "progress", "step": 1, "total_steps": 10, "loss": 2.0, "eta_s": 60}, config)


def kill(number: int, config: dict[str, Any]) -> None:
    os.kill(os.getpid(), number)
    time.sleep(10)


def leave(code: int, config: dict[str, Any]) -> int:
    return code


def checkpoint(step: int, config: dict[str, Any]) -> None:
    path = Path(config["output_dir"]) / f"checkpoint-{step}"
    path.mkdir()
    (path / "optimizer.pt").write_bytes(b"state")
    emit({"event": "checkpoint", "step": step, "path": str(path)}, config)


def fail(event: dict[str, Any], config: dict[str, Any]) -> int:
    data = config["data"][0]
    for row in event["rows"]:
        row["file"] = row["file"].replace("{data}", data)
    emit({**event, "message": event["message"].replace("{data}", data)}, config)
    return 1


def keep(argument: dict[str, Any], config: dict[str, Any]) -> None:
    """A checkpoint whose adapter can be asked."""
    kept = Path(config["output_dir"]) / "checkpoints" / f"step-{argument['step']}"
    shutil.copytree(argument["folder"], kept)
    settings = {"name": config["name"], "step": argument["step"]}
    record = {**argument["record"], "settings": settings}
    (kept / "checkpoint.json").write_text(json.dumps(record))
    emit({"event": "checkpoint", "step": argument["step"]}, config)


def register(_: bool, config: dict[str, Any]) -> str:
    """The registration itself happens in the test's process, which has the imports at hand."""
    work = Path(config["output_dir"])
    order, answer = work / "register.json", work / "registered"
    (work / "order.tmp").write_text(json.dumps(config))
    (work / "order.tmp").rename(order)
    while not answer.exists():
        time.sleep(0.005)
    return answer.read_text()


def register_quietly(argument: bool, config: dict[str, Any]) -> None:
    register(argument, config)


def say_publishing(seconds: float, config: dict[str, Any]) -> None:
    emit({"event": "publishing"}, config)
    time.sleep(seconds)


def publish(argument: bool, config: dict[str, Any]) -> None:
    version_id = register(argument, config)
    metrics = {"base_loss": 2.0, "adapter_loss": 1.0}
    emit({"event": "published", "adapter": version_id, "metrics": metrics, "duration_s": 1}, config)


def touch(path: str, config: dict[str, Any]) -> None:
    Path(path).touch()


def take_memory(num_bytes: int, config: dict[str, Any]) -> None:
    held = bytearray(num_bytes)
    held[::4096] = b"x" * len(held[::4096])
    time.sleep(60)


def let_child_take_memory(num_bytes: int, config: dict[str, Any]) -> None:
    if os.fork() == 0:
        take_memory(num_bytes, config)
    time.sleep(60)


STEPS: dict[str, Any] = {
    "emit": emit,
    "raw": raw,
    "stderr": say,
    "sleep": sleep,
    "wait": wait,
    "lose_storage": lose_storage,
    "ignore_sigterm": ignore_sigterm,
    "kill": kill,
    "exit": leave,
    "checkpoint": checkpoint,
    "keep": keep,
    "fail": fail,
    "register": register_quietly,
    "publish": publish,
    "publishing": say_publishing,
    "take_memory": take_memory,
    "child_takes_memory": let_child_take_memory,
    "touch": touch,
}

if __name__ == "__main__":
    sys.exit(main())
