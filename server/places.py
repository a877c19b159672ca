"""Which folders and files an operator may name in a request. Knows no HTTP.

Only what really lies under the home or ``LORALOOP_ADAPTER_ROOT``, links followed; and nothing that
the server keeps for itself.
"""

from __future__ import annotations

import os
from pathlib import Path

from artifacts.errors import AdapterRejected, NotFound


class AllowedPlaces:
    """Turns a path of a request into a real path inside the allowed roots."""

    def __init__(self, home: Path, adapter_root: Path | None) -> None:
        roots = [adapter_root, home] if adapter_root is not None else [home]
        self.roots = [root.expanduser().resolve() for root in roots]

    def find(self, text: str) -> Path:
        """The real path. A relative one is looked up under each root in turn.

        Raises AdapterRejected("path_escape") for a path outside, NotFound if nothing is there.
        """
        from artifacts.adapter import contained  # needs torch

        if "\0" in text:
            raise AdapterRejected("path_escape", "The path holds a NUL character.")
        path = Path(text)
        candidates = [path] if path.is_absolute() else [root / path for root in self.roots]
        real = [contained(candidate, self.roots) for candidate in candidates]
        for place in real:
            if os.path.exists(place):  # False also for a name longer than any can be
                return place
        listed = " or ".join(str(root) for root in self.roots)
        shown = text if len(text) <= 200 else text[:200] + "…"
        raise NotFound(f"There is nothing that can be read at {shown!r} under {listed}.")
