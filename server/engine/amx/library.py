"""The compiled kernels: where they are, whether this machine can run them, how they are called.

The C files beside this one are compiled when the package is installed. ctypes calls them without
holding the GIL. The structures below mirror those of kernels.h and decoder.c, field by field.
"""

from __future__ import annotations

import contextlib
import ctypes
import mmap
import sysconfig
from ctypes import POINTER, Structure, c_float, c_int32, c_size_t, c_void_p
from pathlib import Path

import torch
from torch import Tensor

NEEDED_FLAGS = frozenset(
    ("amx_tile", "amx_bf16", "avx512f", "avx512bw", "avx512dq", "avx512vl", "avx512_bf16")
)
TILE = 16  # outputs per tile, tokens per KV block
DEPTH = 32  # inputs per tile
MAX_PARTS = 3

STORE_BF16, ADD_BF16, SILU_MUL, STORE_F32 = range(4)


class Linear(Structure):
    _fields_ = [
        ("weight", c_void_p),
        ("bias", c_void_p),
        ("in_features", c_int32),
        ("num_tiles", c_int32),
        ("epilogue", c_int32),
        ("index", c_int32),
    ]


class LoraPart(Structure):
    _fields_ = [
        ("a", c_void_p),
        ("b", c_void_p),
        ("first_tile", c_int32),
        ("stride", c_int32),
        ("num_tiles", c_int32),
        ("rank", c_int32),
    ]


class LoraLinear(Structure):
    _fields_ = [("num_parts", c_int32), ("pad", c_int32), ("parts", LoraPart * MAX_PARTS)]


class LoraSegment(Structure):
    _fields_ = [
        ("linears", c_void_p),
        ("first_row", c_int32),
        ("end_row", c_int32),
        ("rank", c_int32),
        ("pad", c_int32),
    ]


class LoraSlot(Structure):
    _fields_ = [
        ("linears", c_void_p),
        ("row_tile", c_int32),
        ("first", c_int32),
        ("end", c_int32),
        ("pad", c_int32),
    ]


class LoraPlan(Structure):
    _fields_ = [
        ("slots", POINTER(LoraSlot)),
        ("first_slot", POINTER(c_int32)),
        ("t", c_void_p),
        ("num_slots", c_int32),
        ("slot_values", c_int32),
        ("rank_tiles", c_int32),
        ("pad", c_int32),
    ]


class AttentionShape(Structure):
    _fields_ = [
        ("num_heads", c_int32),
        ("num_kv_heads", c_int32),
        ("head_dim", c_int32),
        ("max_len", c_int32),
        ("norm_eps", c_float),
        ("scale", c_float),
        ("cos", c_void_p),
        ("sin", c_void_p),
        ("block_values", c_size_t),
    ]


class AttentionLayer(Structure):
    _fields_ = [
        ("keys", c_void_p),
        ("values", c_void_p),
        ("q_norm", c_void_p),
        ("k_norm", c_void_p),
    ]


class Span(Structure):
    _fields_ = [
        ("blocks", c_void_p),
        ("first_row", c_int32),
        ("num_tokens", c_int32),
        ("num_context", c_int32),
        ("pad", c_int32),
    ]


class Layer(Structure):
    _fields_ = [
        ("linears", Linear * 4),
        ("attention", AttentionLayer),
        ("input_norm", c_void_p),
        ("mlp_norm", c_void_p),
    ]


class Model(Structure):
    _fields_ = [
        ("layers", POINTER(Layer)),
        ("head", Linear),
        ("norm", c_void_p),
        ("embedding", c_void_p),
        ("attention", AttentionShape),
        ("num_layers", c_int32),
        ("hidden", c_int32),
        ("inner", c_int32),
        ("vocab", c_int32),
        ("num_threads", c_int32),
        ("pad", c_int32),
        ("x", c_void_p),
        ("normed", c_void_p),
        ("qkv", c_void_p),
        ("attended", c_void_p),
        ("activated", c_void_p),
        ("picked", c_void_p),
        ("logits", c_void_p),
        ("scratch", c_void_p),
        ("scores", c_void_p),
        ("lora", LoraPlan),
    ]


class Step(Structure):
    _fields_ = [
        ("token_ids", c_void_p),
        ("positions", c_void_p),
        ("slots", c_void_p),
        ("sampled_rows", c_void_p),
        ("spans", POINTER(Span)),
        ("segments", POINTER(LoraSegment)),
        ("num_rows", c_int32),
        ("num_sampled", c_int32),
        ("num_spans", c_int32),
        ("num_segments", c_int32),
    ]


_SIGNATURES = {
    # name: (result, arguments in the order of the C function)
    "amx_init": (c_int32, [c_int32]),
    "amx_fits": (c_int32, [c_size_t] * 4),
    "amx_num_threads": (c_int32, []),
    "amx_pack": (None, [c_void_p, c_void_p, c_int32, c_int32, c_int32, c_int32]),
    "amx_pack_lora": (None, [c_void_p] * 4 + [c_int32] * 3),
    "amx_scratch_values": (c_size_t, [c_int32]),
    "amx_attention_scratch_values": (c_size_t, [POINTER(AttentionShape)]),
    "amx_forward": (None, [POINTER(Model), POINTER(Step)]),
}


def why_not() -> str | None:
    """The reason why the kernels cannot run here; None if they can."""
    missing = NEEDED_FLAGS - _cpu_flags()
    if missing:
        return f"the CPU lacks {', '.join(sorted(missing))}"
    if not library_path().is_file():
        return (
            f"{library_path().name} was not compiled at installation; install a C compiler and "
            "install the package again"
        )
    try:
        open_library(1)
    except OSError as error:
        return str(error)
    return None


def library_path() -> Path:
    return Path(__file__).parent / f"_kernels{sysconfig.get_config_var('EXT_SUFFIX')}"


def open_library(num_threads: int) -> ctypes.CDLL:
    """Load the kernels and allow this process the tile registers.

    The calling thread's products, and those of models it makes, are shared by ``num_threads``.

    Raises:
        OSError: the file is no library, is of other sources, or the operating system refuses.
    """
    library = ctypes.CDLL(str(library_path()))
    stale = f"{library_path().name} was compiled from other sources; install the package again"
    for name, (result, arguments) in _SIGNATURES.items():
        if not hasattr(library, name):
            raise OSError(stale)
        function = getattr(library, name)
        function.restype, function.argtypes = result, arguments
    if not library.amx_fits(*(ctypes.sizeof(s) for s in (Model, Layer, Step, LoraLinear))):
        raise OSError(stale)
    if library.amx_init(num_threads) != 0:
        raise OSError("the operating system does not allow the use of AMX tile registers")
    return library


def huge_pages(num_values: int, dtype: torch.dtype = torch.bfloat16) -> Tensor:
    """Zeros on huge pages where the system has them: fewer address translations per weight read.

    Raises:
        MemoryError: there is no room.
    """
    # Private: Python's default is a shared mapping, which gets small pages.
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
    num_bytes = num_values * dtype.itemsize
    try:
        area = mmap.mmap(-1, num_bytes, flags=flags)
    except OSError as error:
        raise MemoryError(f"no room for {num_bytes} bytes") from error
    with contextlib.suppress(OSError):  # a system without them
        area.madvise(mmap.MADV_HUGEPAGE)
    return torch.frombuffer(area, dtype=dtype)


def _cpu_flags() -> frozenset[str]:
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        return frozenset()
    line = next((row for row in text.splitlines() if row.startswith("flags")), "")
    return frozenset(line.split())
