"""Names that clients choose or get back. Pure text: knows no registry, no database and no HTTP.

A fine-tuning job returns OpenAI's form ``ft:<base>:<organisation>:<suffix>:<id>`` with our version
number as the id, so that it reads back into an adapter version without a look-up.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from artifacts.errors import InvalidInput
from artifacts.names import check_name

_ORGANISATION = "loraloop"
# A base id may hold any character, colons too: the right end of the text decides.
_FINE_TUNED = re.compile(
    rf"ft:(?P<base>.+):{_ORGANISATION}:(?P<name>[a-z0-9][a-z0-9._-]{{0,63}}):(?P<version>[1-9][0-9]{{0,9}})"
)

_CHECKPOINT = re.compile(
    rf"ft:(?P<base>.+):{_ORGANISATION}:(?P<name>[a-z0-9][a-z0-9._-]{{0,63}}):(?P<job>ftjob-[0-9a-f]{{24}}):"
    r"ckpt-step-(?P<step>[1-9][0-9]{0,9})"
)


@dataclass(frozen=True, slots=True)
class CheckpointId:
    """The parts of a checkpoint's id; its adapter lies in the job's folder."""

    base_id: str
    name: str
    job_id: str
    step: int


@dataclass(frozen=True, slots=True)
class FineTunedId:
    """The parts of an ``ft:`` id; ``(name, version)`` is the adapter version that it means."""

    base_id: str
    name: str
    version: int


def fine_tuned_model_id(base_id: str, name: str, version: int) -> str:
    """The id that a job returns for the version it made; chat requests take it as ``model``."""
    return f"ft:{base_id}:{_ORGANISATION}:{name}:{version}"


def parse_fine_tuned_model_id(text: str) -> FineTunedId | None:
    """The parts of ``text``, or None if it is not an id that ``fine_tuned_model_id`` makes."""
    match = _FINE_TUNED.fullmatch(text)
    if match is None:
        return None
    return FineTunedId(match["base"], match["name"], int(match["version"]))


def checkpoint_model_id(base_id: str, name: str, job_id: str, step: int) -> str:
    """The id of a job's checkpoint, which may be asked before the job has made a version."""
    return f"ft:{base_id}:{_ORGANISATION}:{name}:{job_id}:ckpt-step-{step}"


def parse_checkpoint_model_id(text: str) -> CheckpointId | None:
    """The parts of ``text``, or None if it is not an id that ``checkpoint_model_id`` makes."""
    match = _CHECKPOINT.fullmatch(text)
    if match is None:
        return None
    return CheckpointId(match["base"], match["name"], match["job"], int(match["step"]))


def check_adapter_name(name: str, param: str, base_id: str) -> None:
    """Raises InvalidInput or InvalidName, naming the field ``param``."""
    try:
        check_name(name)
    except InvalidInput as error:
        error.param = param
        raise
    if name == base_id:
        raise InvalidInput(f"{name!r} is the base's own id: choose another name.", param=param)
