"""Several runs in one file, each from what the last one published. No torch.

Keys beside ``stages`` are defaults; each stage lays its own over them. A stage is a whole run with
a sub-folder and a version of its own: after an adapter, the next one continues it; after a whole
model, that is the next one's base. All stages are checked before the first begins.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from artifacts.home import Home
from artifacts.safe_write import write_json
from training.config import TrainingConfig, parse_config
from training.errors import InvalidConfig
from training.events import Event, Reporter
from training.outcome import Outcome
from training.signals import StopRequest

Train = Callable[[TrainingConfig, Reporter, StopRequest], Outcome]

_DECIDED = ("rank", "alpha", "target_modules", "layers_to_transform", "use_rslora",
            "initialisation")  # fmt: skip
_OF_THE_WHOLE = ("stages", "home", "output_dir", "resume")
_MADE_BY_THE_LAST = ("start_from", "base")
_FINISHED = "finished.json"
# Two runs with different values here still are the same stage.
_INCIDENTAL = {"resume", "home", "output_dir", "num_threads", "logging_steps", "trackers"}


@dataclass(frozen=True, slots=True)
class Stage:
    """One checked run; ``config`` knows its folder, not yet what it starts from."""

    number: int  # from 1
    config: TrainingConfig

    @property
    def folder(self) -> Path:
        assert self.config.output_dir is not None
        return self.config.output_dir


def parse_stages(settings: dict[str, Any]) -> list[Stage]:
    """Raises InvalidConfig, naming the stage."""
    listed = settings["stages"]
    if not isinstance(listed, list) or not listed or not all(isinstance(s, dict) for s in listed):
        raise InvalidConfig("stages must be a list of key-value tables", param="stages")
    defaults = {key: value for key, value in settings.items() if key != "stages"}
    stages: list[Stage] = []
    for number, own in enumerate(listed, start=1):
        try:
            stages.append(_parse(number, defaults, own, stages[-1] if stages else None))
        except InvalidConfig as error:
            raise InvalidConfig(f"stage {number}: {error}", param=error.param) from error
    return stages


def _parse(number: int, defaults: dict[str, Any], own: dict[str, Any], last: Stage | None) -> Stage:
    for key in _OF_THE_WHOLE:
        if key in own:
            raise InvalidConfig(f"{key} belongs beside stages, not into one", param=key)
    if last is None:
        return _place(number, {**defaults, **own})
    for key in _MADE_BY_THE_LAST:
        if key in own:
            raise InvalidConfig(f"{key} is what stage {number - 1} publishes", param=key)
    inherited = {k: v for k, v in defaults.items() if k != "start_from"}
    method = {**defaults, **own}.get("method", "lora")
    if last.config.method in ("full", "freeze"):
        return _place(number, {**inherited, **own})
    if method != "lora":
        raise InvalidConfig(
            f"method={method} cannot start from the adapter of stage {number - 1}; take "
            "method=lora, or train the whole model first",
            param="method",
        )
    inherited = {key: value for key, value in inherited.items() if key not in _DECIDED}
    return _place(number, {**inherited, **own, "start_from": last.config.name})


def _place(number: int, settings: dict[str, Any]) -> Stage:
    config = parse_config(settings)
    if isinstance(config.resume, Path):
        raise InvalidConfig(
            f"resume={config.resume}: with stages, resume=true finds the place", param="resume"
        )
    root = config.output_dir or Home.open(config.home).jobs / f"train-{config.name}"
    config = config.model_copy(update={"output_dir": root.resolve() / f"stage-{number}"})
    return Stage(number, config)


def run_stages(stages: list[Stage], train: Train, reporter: Reporter, stop: StopRequest) -> Outcome:
    """Runs what is not finished yet; the outcome is the last one's, or the first that is not fit.

    Raises what ``train`` raises, and InvalidConfig for finished stages in the way.
    """
    finished = _finished(stages)
    base, start = stages[0].config.base, stages[0].config.start_from
    outcome: Outcome | None = None
    for stage in stages:
        config = stage.config.model_copy(update={"base": base, "start_from": start})
        outcome = finished.get(stage.number)
        if outcome is None:
            outcome = train(config, _Staged(reporter, stage.number, len(stages)), stop)
            if not outcome.is_fit:
                return outcome
            _write(stage, outcome)
        if outcome.kind == "model":
            base, start = str(outcome.path), None
        else:
            start = outcome.id
    for stage in stages:
        (stage.folder / _FINISHED).unlink()
    assert outcome is not None  # there is no run without a stage
    return outcome


class _Staged:
    """Tells which stage speaks; that one is published is not yet the end of the run."""

    def __init__(self, reporter: Reporter, number: int, num_stages: int) -> None:
        self._reporter = reporter
        self._place = {"stage": number, "num_stages": num_stages}

    def emit(self, event: Event) -> None:
        is_last = self._place["stage"] == self._place["num_stages"]
        renamed = event["event"] == "published" and event["gate"] != "failed" and not is_last
        kind = {"event": "stage_published"} if renamed else {}
        self._reporter.emit({**event, **kind, **self._place})

    def close(self) -> None:
        self._reporter.close()


def _finished(stages: list[Stage]) -> dict[int, Outcome]:
    """What earlier processes of this run have published, by stage."""
    resume = stages[0].config.resume
    found: dict[int, Outcome] = {}
    for stage in stages:
        path = stage.folder / _FINISHED
        if not path.is_file():
            break
        if resume == "overwrite":
            path.unlink()
            continue
        if resume is False:
            raise InvalidConfig(
                f"{stage.folder} is a finished stage of an earlier run; resume=true goes on after "
                "it, resume=overwrite starts over",
                param="resume",
            )
        stored = json.loads(path.read_text(encoding="utf-8"))
        _check_same(stage, stored["settings"])
        outcome = stored["outcome"]
        found[stage.number] = Outcome(**{**outcome, "path": Path(outcome["path"])})
    return found


def _check_same(stage: Stage, stored: dict[str, Any]) -> None:
    wanted = _settings(stage)
    for key in sorted(wanted.keys() | stored.keys()):
        if wanted.get(key) != stored.get(key):
            raise InvalidConfig(
                f"stage {stage.number} was finished with {key}={stored.get(key)!r}, this run asks "
                f"for {wanted.get(key)!r}; use the same settings or another output_dir",
                param=key,
            )


def _write(stage: Stage, outcome: Outcome) -> None:
    shown = {**asdict(outcome), "path": str(outcome.path)}
    write_json(stage.folder / _FINISHED, {"settings": _settings(stage), "outcome": shown})


def _settings(stage: Stage) -> dict[str, Any]:
    return stage.config.model_dump(mode="json", exclude=_INCIDENTAL)
