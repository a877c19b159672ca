"""Traced modules beside transformers, the program beside them, and what loading them takes."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from artifacts.errors import Corrupt, InvalidInput
from artifacts.exported.slab import SlabDecoder
from artifacts.exported.torchscript_model import MODEL_FILE, load_torchscript
from export.forms import torchscript
from export.forms.form import Options, Workshop
from export.forms.torchscript import PROGRAM_FILE, TORCHSCRIPT
from export.source import Source, merged_model
from tests.export.graph.agreement import largest_difference

# What C++ does, in a process that can import neither transformers nor anything of ours; then our
# loader, still without transformers.
ELSEWHERE = """
import sys
for name in ("transformers", "artifacts", "export", "server"):
    sys.modules[name] = None
import torch
inputs, wanted = torch.load(sys.argv[2])
if sys.argv[1].endswith(".ts"):
    model = torch.jit.load(sys.argv[1])
else:
    model = torch.export.load(sys.argv[1]).module()
with torch.no_grad():
    found = [model(*inputs), *inputs[-1]]
worst = max(float((f - w).abs().max()) for f, w in zip(found, wanted, strict=True))
del sys.modules["artifacts"]
if sys.argv[1].endswith(".ts"):
    from pathlib import Path
    from artifacts.exported.torchscript_model import load_torchscript
    load_torchscript(Path(sys.argv[1]).parent)
print(worst)
"""


def test_ragged_prefill_and_decode_are_as_transformers_has_them(
    written: tuple[Path, Any], source: Source
) -> None:
    model = load_torchscript(written[0])
    assert largest_difference(model, merged_model(source)) <= 1e-5


@pytest.mark.parametrize("name", [MODEL_FILE, PROGRAM_FILE])
def test_both_files_load_where_torch_is_all_there_is_and_agree(
    written: tuple[Path, Any], tmp_path: Path, name: str
) -> None:
    folder, model = written[0], load_torchscript(written[0])
    inputs = torchscript._inputs(model.shape, (5, 4, 17, 2))
    again = torchscript._inputs(model.shape, (5, 4, 17, 2))
    with torch.no_grad():
        wanted = [model._module(*inputs), *inputs[-1]]
    torch.save((again, wanted), tmp_path / "asked.pt")
    asked = [sys.executable, "-W", "ignore", "-c", ELSEWHERE]
    done = subprocess.run(
        [*asked, str(folder / name), str(tmp_path / "asked.pt")],
        capture_output=True,
        text=True,
        check=False,
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr
    assert float(done.stdout) <= 1e-5


def test_the_module_is_made_of_torchs_own_operators(written: tuple[Path, Any]) -> None:
    """So that libtorch without Python can run it."""
    module = torch.jit.load(written[0] / MODEL_FILE)
    kinds = {node.kind() for node in module.inlined_graph.nodes()}
    assert {kind.partition("::")[0] for kind in kinds} == {"aten", "prim"}
    assert "prim::PythonOp" not in kinds


def test_the_settings_name_what_each_file_weighs(written: tuple[Path, Any]) -> None:
    folder, settings = written
    assert settings == {
        "weights_in": {name: (folder / name).stat().st_size for name in (MODEL_FILE, PROGRAM_FILE)}
    }


def test_without_pt2_there_is_one_file(source: Source, tmp_path: Path) -> None:
    workshop = Workshop(source, lambda *_: None)
    options = Options(pt2=False)
    settings = TORCHSCRIPT.write(workshop, options, tmp_path)
    assert list(settings["weights_in"]) == [path.name for path in tmp_path.iterdir()]
    size = (tmp_path / MODEL_FILE).stat().st_size
    assert size / 3 < TORCHSCRIPT.num_bytes(source, options) < size


def test_a_size_that_was_baked_in_is_seen(
    source: Source, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Baked(SlabDecoder):
        """Right in Python; a trace keeps the length that it saw."""

        def forward(self, input_ids: torch.Tensor, *rest: Any) -> Any:
            return super().forward(input_ids, *rest) * int(input_ids.shape[1])

    monkeypatch.setattr(torchscript, "SlabDecoder", Baked)
    with pytest.raises(InvalidInput, match=r"model\.ts differs from transformers"):
        TORCHSCRIPT.write(Workshop(source, lambda *_: None), Options(pt2=False), tmp_path)


def test_broken_files_are_refused(written: tuple[Path, Any], tmp_path: Path) -> None:
    with pytest.raises(Corrupt, match="export it again"):
        load_torchscript(tmp_path)
    whole = (written[0] / MODEL_FILE).read_bytes()
    (tmp_path / MODEL_FILE).write_bytes(whole[: len(whole) // 2])
    with pytest.raises(Corrupt, match="export it again"):
        load_torchscript(tmp_path)
    torch.jit.save(torch.jit.trace(torch.nn.Linear(1, 1), torch.ones(1)), tmp_path / MODEL_FILE)
    with pytest.raises(Corrupt, match="export it again"):
        load_torchscript(tmp_path)
