"""How each server of the comparison is started on one base folder, and what it needs before."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys
from pathlib import Path

from loadtests.servers import ROOT, CannotStart, Spec

PEERS = ROOT / ".venv-peers"
TRANSFORMERS, OPENVINO = PEERS / "serve" / "bin", PEERS / "openvino" / "bin"
NAMES = ("loraloop", "transformers", "openvino")
OFFLINE = {"HF_HUB_OFFLINE": "1"}
# What a version is read from: (python of its environment, package).
PACKAGES = {
    "loraloop": (Path(sys.executable), ("torch",)),
    "transformers": (TRANSFORMERS / "python", ("transformers", "torch")),
    "openvino": (OPENVINO / "python", ("openvino-genai", "openvino")),
}


def spec_of(name: str, base: Path, threads: int, home: Path) -> Spec:
    """The command of one contender on the base in ``base``.

    Raises:
        CannotStart: its environment is not there, or the base could not be converted for it.
    """
    if name != "loraloop" and not PACKAGES[name][0].exists():
        raise CannotStart(f"{name} is not installed: `make bench-peers` does that")
    if name == "loraloop":
        return _ours(base, threads, home)
    if name == "transformers":
        return _transformers(base, threads, home)
    return _openvino(base, threads)


def ours_command(base: Path | None) -> list[str]:
    """Our server; the embedded base if ``base`` is None."""
    command = [sys.executable, "loraloop.py", "serve", "--port", "{port}"]
    return command if base is None else [*command, "--model", str(base), "--dtype", "bfloat16"]


def _ours(base: Path, threads: int, home: Path) -> Spec:
    env = {"LORALOOP_HOME": str(home), "LORALOOP_NUM_THREADS": str(threads)}
    return Spec("loraloop", ours_command(base), env=env)


def _transformers(base: Path, threads: int, home: Path) -> Spec:
    """Continuous batching in bf16. Its cache takes most of the free memory by default; a tenth is
    enough for these requests and leaves room for the others."""
    command = [str(TRANSFORMERS / "transformers"), "serve", str(base), "--continuous-batching"]
    command += ["--cb-max-memory-percent", "0.1", "--device", "cpu", "--dtype", "bfloat16"]
    # It lists models from the hub's cache folder, and fails if there is none.
    env = OFFLINE | {"OMP_NUM_THREADS": str(threads), "HF_HUB_CACHE": str(home)}
    return Spec("transformers", [*command, "--port", "{port}"], model=str(base), env=env)


def _openvino(base: Path, threads: int) -> Spec:
    """GenAI's ContinuousBatchingPipeline, bf16, behind `loadtests.openvino_server`."""
    command = [str(OPENVINO / "python"), str(ROOT / "loadtests" / "openvino_server.py")]
    command += ["--model", str(converted(base)), "--threads", str(threads), "--port", "{port}"]
    return Spec("openvino", command)


def converted(base: Path) -> Path:
    """The base as OpenVINO's 16-bit IR, beside it; converted at the first call (half a minute)."""
    folder = base.parent / f"{base.name}-openvino"
    if folder.is_dir():
        return folder
    print(f"converting {base.name} for OpenVINO, once", file=sys.stderr)
    scratch = base.parent / f".{folder.name}-{os.getpid()}"
    command = [str(OPENVINO / "optimum-cli"), "export", "openvino", "--model", str(base)]
    command += ["--task", "text-generation-with-past", "--weight-format", "fp16", str(scratch)]
    done = subprocess.run(
        command, env={**os.environ, **OFFLINE}, capture_output=True, text=True, check=False
    )
    if done.returncode != 0:
        shutil.rmtree(scratch, ignore_errors=True)
        raise CannotStart(f"the conversion for OpenVINO failed:\n{done.stderr[-2000:]}")
    scratch.rename(folder)
    return folder


def versions(name: str) -> dict[str, str]:
    """Package → version in the contender's environment; nothing for servers that others run."""
    if name not in PACKAGES:
        return {}
    python, packages = PACKAGES[name]
    program = "import sys; from importlib.metadata import version\n"
    program += "for name in sys.argv[1:]: print(name, version(name))"
    done = subprocess.run(
        [str(python), "-c", program, *packages], capture_output=True, text=True, check=True
    )
    return dict(line.split(" ", 1) for line in done.stdout.splitlines())


def commit() -> str:
    """The commit of the working tree, with a + if it differs; "unknown" outside of git."""
    command = ["git", "describe", "--always", "--dirty=+", "--exclude=*"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    return done.stdout.strip() or "unknown"


def processor() -> str:
    """The processor's name where the system tells it."""
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor()
