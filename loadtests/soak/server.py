"""The server under test: how it is started, how it is looked at from outside, how it ends.

Its limits are small, so that queue, KV cache, bank and host memory for adapters all run full.
"""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

from loadtests.client import get_json, parse_url
from loadtests.servers import ROOT, Running, Spec, running
from loadtests.soak.chats import STALL_S

JSON = dict[str, Any]
EMBEDDED = ROOT / "artifacts" / "embedded"
MAX_HOST_ADAPTERS = 20  # fewer than there are versions
GRACE_S = 20.0
LIMITS = {
    "LORALOOP_MAX_NUM_SEQS": "16",
    "LORALOOP_MAX_QUEUE": "24",
    "LORALOOP_MAX_RESIDENT_ADAPTERS": "6",
    "LORALOOP_MAX_HOST_ADAPTERS": str(MAX_HOST_ADAPTERS),
    "LORALOOP_KV_CACHE_TOKENS": "2048",
    "LORALOOP_STALL_S": f"{STALL_S:g}",
    "LORALOOP_GRACE_S": f"{GRACE_S:g}",
}
EXACT_KERNELS = "amx"  # the same bits in every batch; torch's do so in float32, nearly


@dataclass(frozen=True)
class Sample:
    """The server's process at one moment. ``num_open``: requests that were under way."""

    at_s: float
    rss_bytes: int
    num_fds: int
    num_threads: int
    num_open: int


@dataclass
class Soaked:
    """A started server with a home of its own."""

    running: Running
    folder: Path  # holds the home and the folders that adapters are imported from
    process: psutil.Process
    samples: list[Sample] = field(default_factory=list)

    @property
    def pid(self) -> int:
        return self.process.pid

    @property
    def environment(self) -> dict[str, str]:
        """For `loraloop adapters …` on the same home."""
        return {**os.environ, "LORALOOP_HOME": str(self.folder / "home")}

    def sample(self, at_s: float, num_open: int) -> Sample:
        """A look at the process from outside."""
        with self.process.oneshot():
            rss = self.process.memory_info().rss
            num_threads = self.process.num_threads()
        return Sample(at_s, rss, self.process.num_fds(), num_threads, num_open)

    async def cli(self, *arguments: str) -> tuple[int, str]:
        """`loraloop …` beside the server: its exit code and all that it printed."""
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "loraloop.py",
            *arguments,
            cwd=ROOT,
            env=self.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
        printed, _ = await process.communicate()
        assert process.returncode is not None
        return process.returncode, printed.decode("utf-8", "replace")

    async def remove_version(self, version_id: str, *options: str) -> str:
        """What went wrong, or nothing."""
        code, printed = await self.cli("adapters", "remove", version_id, *options)
        return "" if code == 0 else f"exit code {code}: {printed[-500:]}"

    def stop(self) -> None:
        """SIGTERM."""
        os.kill(self.pid, signal.SIGTERM)

    async def exit_code(self, within_s: float) -> int | None:
        """How it ended; None if it did not within that time."""
        assert self.running.process is not None
        try:
            return await asyncio.to_thread(self.running.process.wait, within_s)
        except subprocess.TimeoutExpired:
            return None

    def complaints(self) -> list[str]:
        """Lines of its log that should not be there."""
        assert self.running.log is not None
        lines = self.running.log.read_text(encoding="utf-8", errors="replace").splitlines()
        return [line for line in lines if line.startswith(("ERROR", "Traceback", "CRITICAL"))]


@contextmanager
def soaked(model: Path | None, folder: Path) -> Iterator[Soaked]:
    """The server while the block runs, with kernels whose answers repeat exactly.

    Raises CannotStart.
    """
    for dtype in ("auto", "float32"):
        with running(_spec(model, dtype, folder)) as server:
            stats = get_json(parse_url(server.url + "/admin"), "/stats")
            if dtype == "float32" or stats["engine"]["kernels"] == EXACT_KERNELS:
                assert server.process is not None
                yield Soaked(server, folder, psutil.Process(server.process.pid))
                return


def _spec(model: Path | None, dtype: str, folder: Path) -> Spec:
    command = [sys.executable, "loraloop.py", "serve", "--port", "{port}", "--dtype", dtype]
    command += [] if model is None else ["--model", str(model)]
    folders = {"LORALOOP_HOME": folder / "home", "LORALOOP_ADAPTER_ROOT": folder / "made"}
    (folder / "made").mkdir(exist_ok=True)
    env = LIMITS | {key: str(value) for key, value in folders.items()}
    return Spec("soak", command, env=env | {"PYTHONUNBUFFERED": "1"})
