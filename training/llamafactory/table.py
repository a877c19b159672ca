"""The table of docs/llama-factory.md: ``python -m training.llamafactory.table`` prints it.

A test holds the page against it.
"""

from __future__ import annotations

from training.llamafactory.entries import Entry, Idle, Refused
from training.llamafactory.keys import GROUPS


def table() -> str:
    """Markdown: one row per key, by group."""
    parts = []
    for group, entries in GROUPS.items():
        rows = [f"| `{key}` | {_said(entry)} |" for key, entry in entries.items()]
        parts.append(
            "\n".join([f"### {group.capitalize()}", "| key | what it does |", "|---|---|", *rows])
        )
    return "\n\n".join(parts) + "\n"


def _said(entry: Entry) -> str:
    if isinstance(entry, Idle):
        return f"noted: {entry.reason}"
    if isinstance(entry, Refused):
        allowed = [
            f"`{value}`" for value in entry.neutral if value not in (None, False, "", [], {})
        ]
        known = f" (but for {', '.join(allowed)})" if allowed else ""
        return f"refused{known}: {entry.reason}"
    return f"→ `{entry.to}`" + (f": {entry.remark}" if entry.remark else "")


if __name__ == "__main__":
    print(table(), end="")
