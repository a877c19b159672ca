"""Which failures of torch and onnxruntime mean that memory ran out. Knows nothing of steps,
adapters or bases."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from server.engine.errors import OutOfMemory

# torch's CPU allocator raises a bare RuntimeError: no type and no attribute tells it apart, only
# the file it names. tests/server/engine/test_out_of_memory.py provokes a real one.
_CPU_ALLOCATOR = "alloc_cpu.cpp"
# Neither has onnxruntime a type for it: its arena names its file, other allocators C++'s own.
_ONNX_ALLOCATORS = ("bfc_arena.cc", "std::bad_alloc")


def is_out_of_memory(error: BaseException) -> bool:
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    if type(error).__module__.startswith("onnxruntime."):
        return any(name in str(error) for name in _ONNX_ALLOCATORS)
    return type(error) is RuntimeError and _CPU_ALLOCATOR in str(error)


@contextmanager
def memory_bound(what: str, remedy: str = "") -> Iterator[None]:
    """Turn a lack of memory inside into `OutOfMemory`; ``what`` names what was being done."""
    try:
        yield
    except Exception as error:
        if isinstance(error, OutOfMemory) or not is_out_of_memory(error):
            raise
        advice = f" {remedy}" if remedy else ""
        raise OutOfMemory(f"memory ran out while {what}.{advice}") from error
