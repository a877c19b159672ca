"""Adapters of the latest checkpoints stay where a server can answer with them."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

from safetensors.torch import load_file, save_file

from artifacts.adapter import read_adapter
from artifacts.base import open_base
from artifacts.manifest import CHECKPOINT_FILE, ManifestDraft
from tests.training.test_run import interrupt, train, versions
from training.checkpoints import KeptCheckpoints, kept_steps
from training.config import parse_config


def record_of(folder: Path) -> ManifestDraft:
    return ManifestDraft.model_validate_json((folder / CHECKPOINT_FILE).read_bytes())


def test_the_latest_adapters_stay_with_what_is_known_of_them(settings: dict[str, Any]) -> None:
    told = train(settings, kept_checkpoints=2)
    kept = Path(settings["output_dir"]) / "checkpoints"
    assert kept_steps(kept) == [12, 16]
    assert sorted(path.name for path in kept.iterdir()) == ["step-12", "step-16"]
    losses = {event["step"]: event["validation_loss"] for event in told.of("evaluated")}
    base = open_base(settings["base"])
    for step in (12, 16):
        weights, record = read_adapter(kept / f"step-{step}"), record_of(kept / f"step-{step}")
        assert record.content_hash == weights.content_hash
        assert (record.base_fingerprint, record.template_hash) == (
            base.fingerprint,
            base.template_hash,
        )
        assert record.settings == {"name": "tiny", "step": step}
        assert record.metrics == {"validation_loss": losses[step]}
        assert record.gate == "none"
    best = min(losses, key=lambda step: losses[step])
    assert best == 16, "the run was to learn until its end"
    assert record.content_hash == versions(settings)[0].content_hash


def test_a_resumed_run_goes_on_with_them(settings: dict[str, Any]) -> None:
    interrupt(settings, 6, kept_checkpoints=3)
    kept = Path(settings["output_dir"]) / "checkpoints"
    assert len(kept_steps(kept)) == 2  # of the evaluation, and of the stop
    (kept / ".step-8").mkdir()  # as a kill in the middle of a copy leaves it
    train(settings, kept_checkpoints=3, resume=True)
    assert kept_steps(kept) == [8, 12, 16]
    assert not [path for path in kept.iterdir() if path.name.startswith(".")]


def test_what_has_no_effect_is_not_kept(settings: dict[str, Any], tmp_path: Path) -> None:
    train(settings, kept_checkpoints=1)
    saved = Path(settings["output_dir"]) / "checkpoints" / "step-16"
    run = tmp_path / "other"
    (run / "checkpoints").mkdir(parents=True)
    saved.rename(run / "checkpoint-2")
    weights = run / "checkpoint-2" / "adapter_model.safetensors"
    tensors = load_file(weights)
    save_file({name: tensor * 0 for name, tensor in tensors.items()}, weights)
    config = parse_config({**settings, "kept_checkpoints": 1})
    keeper = KeptCheckpoints(run / "checkpoints", config, open_base(settings["base"]), "hash")
    state: Any = SimpleNamespace(global_step=2, log_history=[])
    arguments: Any = SimpleNamespace(output_dir=str(run))
    keeper.on_save(arguments, state, arguments)
    assert kept_steps(run / "checkpoints") == []
