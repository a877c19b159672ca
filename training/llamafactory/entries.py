"""What can be said of one of LLaMA-Factory's keys: taken, without meaning here, or refused."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from training.errors import InvalidConfig


@dataclass(frozen=True, slots=True)
class Taken:
    """Becomes training's key ``to``, its value read by ``read``.

    ``read`` None: decided together with other keys, in ``training.llamafactory.settle``.
    """

    to: str
    remark: str = ""
    read: Callable[[Any], Any] | None = lambda value: value


@dataclass(frozen=True, slots=True)
class Idle:
    """Changes nothing about the weights that come out; said once at the start."""

    reason: str


@dataclass(frozen=True, slots=True)
class Refused:
    """Would change what comes out, and cannot be done; ``neutral`` values ask for nothing."""

    reason: str
    neutral: tuple[Any, ...] = (None, False)

    def check(self, key: str, value: Any) -> None:
        """Raises InvalidConfig unless ``value`` asks for nothing."""
        # True == 1 and False == 0: the type tells them apart
        if not any(value == each and type(value) is type(each) for each in self.neutral):
            raise InvalidConfig(f"{key}={value!r} cannot be honoured: {self.reason}", param=key)


Entry = Taken | Idle | Refused


def listed(value: Any) -> list[str]:
    """``a,b`` or a YAML list as a list of words."""
    words = value if isinstance(value, list) else str(value).split(",")
    return [word for each in words if (word := str(each).strip())]


def one_of(choices: dict[Any, Any]) -> Callable[[Any], Any]:
    """A reader of a closed set of words. Raises ValueError naming what there is."""

    def read(value: Any) -> Any:
        try:
            return choices[value]
        except (KeyError, TypeError):
            known = ", ".join(str(choice) for choice in choices)
            raise ValueError(f"trained here: {known}") from None

    return read


def flag(value: Any) -> bool:
    """Raises ValueError for what is neither true nor false."""
    if not isinstance(value, bool):
        raise ValueError("expected true or false")
    return value
