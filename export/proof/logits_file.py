"""Logits on disk: of a large vocabulary, those of a few thousand tokens are too many for memory."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from types import TracebackType

import torch
from torch import Tensor

from artifacts.errors import StorageFull
from artifacts.storage import storage_errors


class LogitsFile:
    """Float32 vectors by number. The file has no name: it goes with the process, however that ends.

    Raises StorageFull at once where ``num_vectors`` do not fit beside ``folder``.
    """

    def __init__(self, folder: Path, vocab_size: int, num_vectors: int) -> None:
        self._vocab_size, self._folder = vocab_size, folder
        wanted, free = 4 * vocab_size * num_vectors, shutil.disk_usage(folder).free
        if free < wanted:
            raise StorageFull(
                f"a proof keeps {wanted / 1e9:.1f} GB of logits for a while in {folder}, where "
                f"{free / 1e9:.1f} GB are free; free some on its disk"
            )
        with storage_errors(folder):
            # closed by __exit__
            self._file = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115
        self._num_reserved = 0

    def reserve(self, count: int) -> int:
        """The first of ``count`` numbers that nobody else has."""
        self._num_reserved += count
        return self._num_reserved - count

    def write(self, first: int, vectors: Tensor) -> None:
        """``vectors`` [count, vocab_size] get the numbers ``first``, ``first + 1``, …"""
        with storage_errors(self._folder):
            self._file.seek(4 * self._vocab_size * first)
            self._file.write(vectors.contiguous().numpy().data)
            self._file.flush()

    def read(self, first: int, count: int) -> Tensor:
        """[count, vocab_size]"""
        found = torch.empty(count, self._vocab_size)
        with storage_errors(self._folder):
            self._file.seek(4 * self._vocab_size * first)
            self._file.readinto(found.numpy().data.cast("B"))
        return found

    def __enter__(self) -> LogitsFile:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._file.close()
