"""Which module may import which: the floors of the building, held by reading the imports."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent

# package → our packages that it may import (itself always)
FLOORS: dict[str, set[str]] = {
    "artifacts": set(),
    "training": {"artifacts"},
    "export": {"artifacts"},
    "server": {"artifacts"},
    "loadtests": set(),
    "demo": {"loadtests"},  # both speak HTTP only
    "loraloop": {"artifacts", "training", "export", "server", "demo"},
}
# path prefix → top-level modules that nothing below it may import, lazily or not
BANNED: dict[str, set[str]] = {
    "server/engine/": {"fastapi", "starlette", "pydantic", "pydantic_settings", "sse_starlette"},
    "server/": {"peft", "trl", "datasets", "accelerate"},
    "loadtests/": {"torch", "transformers"},
    "demo/": {"torch", "transformers", "locust"},
}
# policy without tensors: importing one of these must not bring in torch, not even through others
NO_TORCH = (
    *(f"server.engine.{name}" for name in ("request", "errors", "scheduler", "blocks")),
    *(f"server.engine.{name}" for name in ("slots", "sequence", "output", "engine", "residency")),
    *(
        f"server.{name}"
        for name in ("comparison.experiments", "comparison.split", "names", "resolve")
    ),
    *(f"artifacts.{name}" for name in ("errors", "names", "home", "safe_write", "database")),
    *(f"artifacts.{name}" for name in ("manifest", "registry")),
)


def sources() -> list[Path]:
    """Every module of ours, tests left out."""
    found = [ROOT / "loraloop.py"]
    for package in FLOORS:
        found.extend(sorted((ROOT / package).rglob("*.py")))
    return found


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports(tree: ast.AST, module: str) -> Iterator[str]:
    """Dotted names imported anywhere below ``tree``; relative imports made absolute."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parent = module.rsplit(".", node.level)[0]
                base = f"{parent}.{base}".rstrip(".")
            yield base
            yield from (f"{base}.{alias.name}" for alias in node.names)


def is_type_checking(node: ast.stmt) -> bool:
    return isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)


def eager(tree: ast.Module) -> ast.Module:
    """What runs on import: no function bodies, nothing under TYPE_CHECKING."""

    class Prune(ast.NodeTransformer):
        def visit_FunctionDef(self, node: ast.FunctionDef) -> None:
            return None

        def visit_AsyncFunctionDef(self, node: ast.AsyncFunctionDef) -> None:
            return None

        def visit_If(self, node: ast.If) -> ast.AST | None:
            return None if is_type_checking(node) else self.generic_visit(node)

    pruned = Prune().visit(ast.parse(ast.unparse(tree)))
    assert isinstance(pruned, ast.Module)
    return pruned


TREES = {path: ast.parse(path.read_text(encoding="utf-8")) for path in sources()}
PATHS = {module_name(path): path for path in TREES}


def top(name: str) -> str:
    return name.split(".", 1)[0]


def test_imports_run_downwards_only() -> None:
    wrong = sorted(
        f"{path.relative_to(ROOT)} imports {name}"
        for path, tree in TREES.items()
        for name in set(imports(tree, module_name(path)))
        if top(name) in FLOORS
        and top(name) != top(module_name(path))
        and top(name) not in FLOORS[top(module_name(path))]
    )
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("prefix", BANNED)
def test_libraries_stay_on_their_floor(prefix: str) -> None:
    wrong = sorted(
        f"{path.relative_to(ROOT)} imports {name}"
        for path, tree in TREES.items()
        if path.relative_to(ROOT).as_posix().startswith(prefix)
        for name in set(imports(tree, module_name(path)))
        if top(name) in BANNED[prefix]
    )
    assert not wrong, "\n".join(wrong)


def chain_to_torch(module: str) -> list[str] | None:
    """The shortest chain of eager imports of ours from ``module`` to torch, None without one."""
    chains, seen = [[module]], {module}
    while chains:
        chain = chains.pop(0)
        for name in imports(eager(TREES[PATHS[chain[-1]]]), chain[-1]):
            if top(name) == "torch":
                return [*chain, name]
            packages = [name.rsplit(".", n)[0] for n in range(name.count(".") + 1)]
            for found in packages:
                if found in PATHS and found not in seen:
                    seen.add(found)
                    chains.append([*chain, found])
    return None


@pytest.mark.parametrize("module", NO_TORCH)
def test_policy_knows_no_tensors(module: str) -> None:
    if module not in PATHS:
        pytest.fail(f"{module} is gone: name its successor in NO_TORCH")
    chain = chain_to_torch(module)
    assert chain is None, " → ".join(chain or [])


def test_a_running_server_has_not_loaded_the_training_libraries() -> None:
    """Also through others: transformers must not drag them in at start-up."""
    program = (
        "import sys, server.main, server.app, server.engine.load\n"
        "print(sorted({'peft', 'trl', 'datasets', 'accelerate'} & set(sys.modules)))"
    )
    answer = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=120
    )
    assert answer.returncode == 0, answer.stderr
    assert answer.stdout.strip() == "[]"


def test_the_command_line_answers_without_loading_torch() -> None:
    program = "import sys, loraloop; print('torch' in sys.modules or 'transformers' in sys.modules)"
    answer = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=60
    )
    assert answer.stdout.strip() == "False", answer.stderr
