"""The image without a Docker engine: what the Dockerfile says is held against the tree.

Lines that need the network are compared with their counterparts; the others run in a scratch
folder.
"""

from __future__ import annotations

import fnmatch
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import threading
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).resolve().parent.parent


def instructions() -> list[tuple[str, str]]:
    """(word, rest) of each instruction, continuation lines joined, comments out."""
    text = (ROOT / "Dockerfile").read_text(encoding="utf-8")
    text = re.sub(r"^\s*#.*\n", "", text, flags=re.MULTILINE).replace("\\\n", " ")
    return [(word, rest) for word, _, rest in (s.partition(" ") for s in text.splitlines() if s)]


def stages() -> list[list[tuple[str, str]]]:
    found: list[list[tuple[str, str]]] = []
    for word, rest in instructions():
        if word == "FROM":
            found.append([])
        found[-1].append((word, rest))
    return found


def rests(stage: list[tuple[str, str]], wanted: str) -> list[str]:
    return [rest for word, rest in stage if word == wanted]


def copied() -> list[str]:
    """Sources that come from the tree."""
    copies = [shlex.split(rest) for rest in rests(instructions(), "COPY")]
    return [src for words in copies if not words[0].startswith("--from") for src in words[:-1]]


def project() -> dict[str, Any]:
    table: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    return table


def run_line(start: str) -> str:
    """The one RUN line that starts so."""
    (line,) = [rest for rest in rests(instructions(), "RUN") if rest.startswith(start)]
    return line


def test_two_stages_and_the_last_one_builds_nothing() -> None:
    build, final = stages()
    assert rests(build, "FROM")[0].endswith(" AS build")
    assert not any("pip" in line for line in rests(final, "RUN"))
    assert rests(final, "COPY") == ["--from=build /opt/loraloop /opt/loraloop"]


def test_every_copied_source_exists_and_reaches_the_build() -> None:
    patterns = (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines()
    allowed = [pattern[1:] for pattern in patterns if pattern.startswith("!")]
    assert "*" in patterns
    for source in copied():
        assert (ROOT / source).exists(), source
        assert any(fnmatch.fnmatch(source, pattern) for pattern in allowed), source
    assert sorted(allowed) == sorted(copied())


def test_every_installed_package_is_copied_or_left_out_on_purpose() -> None:
    packages = {
        pattern.rstrip("*")
        for pattern in project()["tool"]["setuptools"]["packages"]["find"]["include"]
    }
    present = {package for package in packages if list((ROOT / package).glob("*.py"))}
    assert present - set(copied()) == {"loadtests", "demo"}  # clients are not in the image


def test_torch_is_the_version_of_the_makefile_and_the_constraints() -> None:
    (version,) = re.findall(r"torch==(\S+)", run_line("pip install torch"))
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    assert f"TORCH_VERSION := {version}\n" in makefile
    assert f"\ntorch=={version}\n" in (ROOT / "constraints.txt").read_text(encoding="utf-8")
    assert f"torch=={version}" in project()["project"]["dependencies"]
    assert '--index-url "$TORCH_INDEX"' in run_line("pip install torch")
    assert rests(stages()[0], "ARG") == ["TORCH_INDEX=https://download.pytorch.org/whl/cpu"]


def test_the_requirements_line_lists_what_serving_training_and_export_need(tmp_path: Path) -> None:
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    line = run_line("python -c").replace("python ", f"{shlex.quote(sys.executable)} ", 1)
    subprocess.run(line, shell=True, cwd=tmp_path, check=True, timeout=30)
    listed = (tmp_path / "requirements.txt").read_text(encoding="utf-8").split("\n")
    table = project()["project"]
    extras = table["optional-dependencies"]
    wanted = [line for name in ("train", "quantization", "onnx", "export") for line in extras[name]]
    expected = table["dependencies"] + [line for line in wanted if not line.startswith("loraloop")]
    assert [line for line in listed if line] == expected
    assert run_line("pip install -c").endswith("-r requirements.txt")


def test_the_copied_sources_install_and_the_command_runs(tmp_path: Path) -> None:
    """``pip install --no-deps .`` on exactly what COPY brings; the build backend is at hand."""
    source, target = tmp_path / "src", tmp_path / "site"
    source.mkdir()
    for name in copied():
        if (ROOT / name).is_dir():
            shutil.copytree(
                ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__")
            )
        else:
            shutil.copy(ROOT / name, source / name)
    line = run_line("pip install --no-deps .")
    command = [sys.executable, "-m", *shlex.split(line), "--no-build-isolation", "--quiet"]
    command += ["--target", str(target)]
    subprocess.run(command, cwd=source, check=True, capture_output=True, timeout=150)
    assert (target / "artifacts" / "embedded" / "model.safetensors").exists()
    assert list((target / "training" / "configs").glob("*.yaml"))
    done = subprocess.run(
        [sys.executable, "-m", "loraloop", "serve", "--help"],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(target)},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    assert "--port" in done.stdout


def test_the_server_runs_as_an_own_user_that_may_write_its_home() -> None:
    final = stages()[1]
    (user,) = rests(final, "USER")
    assert user not in ("root", "0")
    (line,) = rests(final, "RUN")
    assert re.search(rf"useradd .*\b{user}\b", line)
    (volume,) = rests(final, "VOLUME")
    assert f"--owner {user} {volume}" in line
    assert f"LORALOOP_HOME={volume}" in rests(final, "ENV")[0]


def test_entry_point_and_ports_are_real() -> None:
    final = stages()[1]
    (entry,) = json.loads(rests(final, "ENTRYPOINT")[0])
    assert entry in project()["project"]["scripts"]
    assert json.loads(rests(final, "CMD")[0]) == ["serve"]
    assert rests(final, "EXPOSE") == ["8000"]


@contextmanager
def answering(status: int) -> Iterator[int]:
    class Handler(BaseHTTPRequestHandler):
        def log_message(self, format: str, *args: object) -> None:
            """Silence."""

        def do_GET(self) -> None:
            self.send_response(status if self.path == "/health/ready" else 404)
            self.end_headers()

    server = HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield server.server_port
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@pytest.mark.parametrize(("status", "is_healthy"), [(200, True), (503, False)])
def test_the_health_check_tells_ready_from_not_ready(status: int, is_healthy: bool) -> None:
    (line,) = rests(stages()[1], "HEALTHCHECK")
    command = json.loads(line[line.index("[") :])
    with answering(status) as port:
        program = command[2].replace(":8000/", f":{port}/")
        done = subprocess.run([sys.executable, command[1], program], capture_output=True)
    assert (done.returncode == 0) is is_healthy


def test_compose_mounts_the_home_and_builds_the_same_way() -> None:
    text = (ROOT / "compose.yaml").read_text(encoding="utf-8")
    service = yaml.safe_load(text)["services"]["loraloop"]
    (volume,) = rests(stages()[1], "VOLUME")
    assert service["volumes"] == [f"home:{volume}"]
    (argument,) = rests(stages()[0], "ARG")
    assert argument.split("=", 1)[1] in service["build"]["args"]["TORCH_INDEX"]
    assert all(port.endswith(":8000") for port in service["ports"])
