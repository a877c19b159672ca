"""How much memory a training child may take, and who notices that it takes more.

The resident size of the process and what it started is looked at four times a second. The kernel's
own limits do not fit: RLIMIT_DATA and RLIMIT_AS count what is reserved, which for torch is two to
four times what is used. Should a child outrun the looks, the kernel takes it before the server.
"""

from __future__ import annotations

import asyncio

import psutil

from server.jobs.states import JobError

LOOK_S = 0.25
SHARE = 0.9  # of the memory that is available when the child starts, unless the operator says
MB = 1_000_000


def limit_bytes(wanted: int | None) -> int:
    """The limit of a child that starts now."""
    return int(SHARE * psutil.virtual_memory().available) if wanted is None else wanted


def resident_bytes(pid: int) -> int:
    """Of the process and all that it started; 0 if it is gone."""
    try:
        process = psutil.Process(pid)
        family = [process, *process.children(recursive=True)]
    except psutil.NoSuchProcess:
        return 0
    return sum(map(_resident, family))


async def until_over(pid: int, limit: int) -> int:
    """Returns what the process uses once that is more than ``limit`` bytes."""
    while True:
        used = await asyncio.to_thread(resident_bytes, pid)
        if used > limit:
            return used
        await asyncio.sleep(LOOK_S)


def over_limit(used: int, limit: int, wanted: int | None) -> JobError:
    """What the job's owner is told."""
    where = "" if wanted is not None else f", {SHARE:.0%} of what was free when it started"
    return JobError(
        "out_of_memory",
        f"The training process used {used / MB:,.0f} MB of memory and was ended: the limit is "
        f"{limit / MB:,.0f} MB{where}. Lower batch_size or max_length, set "
        "gradient_checkpointing, or raise LORALOOP_TRAINING_MEMORY_BYTES.",
    )


def _resident(process: psutil.Process) -> int:
    try:
        return int(process.memory_info().rss)
    except psutil.NoSuchProcess:
        return 0
