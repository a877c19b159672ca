"""A server process whose home lies on a small disk of its own: one that can really be filled.

In a user and mount namespace: no root is needed, and nobody else sees the disk.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]
SIZE = "16m"
START_TIMEOUT_S = 120.0
NAMESPACE = ["unshare", "--user", "--map-root-user", "--mount"]
MOUNT = f'mount -t tmpfs -o size={SIZE} tmpfs "$0" && exec "$@"'


@dataclass
class Confined:
    """The process, its disk as itself and as we see it, and where its log goes."""

    process: subprocess.Popen[bytes]
    disk: Path
    log: Path
    url: str

    @property
    def home(self) -> Path:
        """Its home, from outside of its namespace."""
        return Path(f"/proc/{self.process.pid}/root{self.disk}/home")

    def tree(self) -> set[str]:
        """Every file of the home but those of the database and the journal of answers."""
        names = (path.relative_to(self.home) for path in self.home.rglob("*") if path.is_file())
        return {str(n) for n in names if n.parts[0] not in OWN}

    @contextlib.contextmanager
    def full(self) -> Iterator[None]:
        """Not one byte of the disk is free inside."""
        ballast = self.home.parent / "ballast"
        with ballast.open("wb", 0) as stream, contextlib.suppress(OSError):
            while stream.write(bytes(4096)):
                pass
        try:
            yield
        finally:
            ballast.unlink()

    @contextlib.contextmanager
    def read_only(self) -> Iterator[None]:
        """Nothing below the home can be opened for writing inside. What is open stays so."""
        home = str(self.disk / "home")
        self._inside(f"mount --bind {home} {home} && mount -o remount,bind,ro {home}")
        try:
            yield
        finally:
            self._inside(f"umount {home}")

    def _inside(self, command: str) -> None:
        enter = ["nsenter", "--preserve-credentials", "--user", "--mount"]
        target = ["--target", str(self.process.pid), "sh", "-c", command]
        subprocess.run([*enter, *target], check=True)


OWN = {"answers", "registry.db", "registry.db-shm", "registry.db-wal", "server.lock"}


def refusal() -> str | None:
    """Why there can be no such disk here; None if there can."""
    probe = [*NAMESPACE, "sh", "-c", MOUNT, "/mnt", "true"]
    try:
        done = subprocess.run(probe, capture_output=True, text=True)
    except OSError as error:
        return str(error)
    return done.stderr.strip() or None if done.returncode else None


@contextlib.contextmanager
def confined(base: Path, root: Path, adapter_root: Path) -> Iterator[Confined]:
    disk, log = root / "disk", root / "server.log"
    disk.mkdir()
    serve = ["loraloop.py", "serve", "--port", "0", "--dtype", "float32", "--model", str(base)]
    environment = os.environ | {
        "LORALOOP_HOME": str(disk / "home"),
        "LORALOOP_KERNELS": "torch",
        "LORALOOP_ADAPTER_ROOT": str(adapter_root),
        "PYTHONUNBUFFERED": "1",
    }
    with log.open("wb") as output:
        process = subprocess.Popen(
            [*NAMESPACE, "sh", "-c", MOUNT, str(disk), sys.executable, *serve],
            cwd=REPOSITORY,
            env=environment,
            stdout=output,
            stderr=output,
        )
    try:
        yield Confined(process, disk, log, _url(process, log))
    finally:
        process.terminate()
        process.wait(60)


def _url(process: subprocess.Popen[bytes], log: Path) -> str:
    deadline = time.monotonic() + START_TIMEOUT_S
    while time.monotonic() < deadline:
        for line in log.read_text().splitlines():
            if line.startswith("ready: "):
                return line.split()[1].removesuffix("/v1")
        assert process.poll() is None, f"the server stopped:\n{log.read_text()}"
        time.sleep(0.1)
    raise AssertionError(f"not ready:\n{log.read_text()}")
