"""What a training child says about its run, in a job's words. Knows no job.

Forecast, findings of the data doctor, diagnoses of the live one, remedies: each becomes one event
of the job, with the child's own figures as its data.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

Event = dict[str, Any]


class Remark(NamedTuple):
    """An event of a job."""

    level: str
    message: str
    data: Event


def remark_on(event: Event) -> Remark | None:
    """None for events that are no remarks, and for ones that lack what they should say."""
    told = _REMARKS.get(str(event.get("event")))
    if told is None:
        return None
    level, say = told
    try:
        message = say(event)
    except (KeyError, TypeError, ValueError, AttributeError):  # a child of another version
        return None
    return Remark(level, message, {key: event[key] for key in event if key != "event"})


def _data_checked(event: Event) -> str:
    problems = [
        f"{count} {key.removeprefix('num_').replace('_', ' ')}"
        for key, count in event.items()
        if key.startswith("num_") and key not in ("num_rows", "num_tokens") and count
    ]
    return f"Data checked: {event['num_rows']} rows; {', '.join(problems) or 'nothing found'}"


def _forecast(event: Event) -> str:
    return (
        f"Forecast: {event['trainable_parameters']:,} trainable parameters "
        f"({event['trainable_share']:.2%}), peak memory {event['peak_bytes'] / 2**20:.0f} MiB, "
        f"{event['seconds']:.0f} s"
    )


def _used(event: Event) -> str:
    return (
        f"Peak memory {event['peak_bytes'] / 2**20:.0f} MiB "
        f"(forecast {event['forecast_peak_bytes'] / 2**20:.0f} MiB), "
        f"{event['seconds']:.0f} s (forecast {event['forecast_seconds']:.0f} s)"
    )


def _diagnosis(event: Event) -> str:
    return (
        f"Step {event['step']}: {event['symptom'].replace('_', ' ')}: {event['seen']}. "
        f"Cause: {event['cause']}. Remedy: {event['remedy']}."
    )


def _remedy(event: Event) -> str:
    changes = ", ".join(f"{key}={value}" for key, value in event["changes"].items())
    return f"{event['symptom'].replace('_', ' ').capitalize()}: the run goes on with {changes}"


_REMARKS: dict[str, tuple[str, Callable[[Event], str]]] = {
    "data_checked": ("info", _data_checked),
    "forecast": ("info", _forecast),
    "used": ("info", _used),
    "diagnosis": ("warn", _diagnosis),
    "remedy": ("warn", _remedy),
}
