"""``python -m tests.export.weights.memory_child BASE ADAPTER OUTPUT SHARD_BYTES FORMAT…``

Says "ready" with everything imported, what is imported late included, then writes one format for
every line it is sent.
"""

from __future__ import annotations

import sys
from pathlib import Path

from export.forms.bitsandbytes import INT8, NF4
from export.forms.form import Form
from export.forms.merged import MERGED
from export.source import open_source
from tests.export.weights.conftest import write_form

FORMS: dict[str, Form] = {"merged": MERGED, "nf4": NF4, "int8": INT8}


def main() -> None:
    base, adapter, output, shard_bytes, *formats = sys.argv[1:]
    open_source(adapter, base)  # and forgotten: it has imported what it needs
    for name in formats:
        print("ready", flush=True)
        sys.stdin.readline()
        source = open_source(adapter, base)
        folder = Path(output) / name
        write_form(FORMS[name], source, folder, shard_bytes=int(shard_bytes), calibrate=False)
    print("done", flush=True)


if __name__ == "__main__":
    main()
