"""The adapter alone: what PEFT needs of it, its card, and the licence of its base."""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import Any

from artifacts.adapter import CONFIG_FILE, WEIGHTS_FILE
from artifacts.manifest import CARD_FILE
from export.forms.form import Options, Workshop
from export.source import Source

# As bases bring them: LICENSE, LICENSE-MODEL, LICENCE.txt, NOTICE, COPYING, USE_POLICY.md
LICENCES = re.compile(r"(licen[cs]e|notice|copying|use_policy)([-_. ].*)?", re.IGNORECASE)


class Adapter:
    """An ``export.forms.form.Form``."""

    options: frozenset[str] = frozenset()

    def check(self, source: Source, options: Options) -> None:
        pass  # opening the source refused all that is no plain LoRA

    def num_bytes(self, source: Source, options: Options) -> int:
        return sum(path.stat().st_size for path in _files(source))

    def write(self, workshop: Workshop, options: Options, folder: Path) -> dict[str, Any]:
        files = _files(workshop.source)
        for number, path in enumerate(files):
            workshop.progress(number, len(files), "copying")
            shutil.copyfile(path, folder / path.name)
        return {}


def _files(source: Source) -> list[Path]:
    """A card is there where the registry or somebody else wrote one."""
    adapter = [source.folder / name for name in (CONFIG_FILE, WEIGHTS_FILE, CARD_FILE)]
    base = sorted(source.base.path.iterdir())
    return [path for path in adapter if path.is_file()] + [
        path for path in base if path.is_file() and LICENCES.fullmatch(path.name)
    ]


ADAPTER = Adapter()
