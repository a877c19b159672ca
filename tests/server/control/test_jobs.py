"""Jobs from queue to end, with a fake trainer as the child: every way that a run can go."""

from __future__ import annotations

import io
import json
import os
import signal
from pathlib import Path
from typing import Any

import psutil
import pytest

from artifacts.errors import Conflict, InvalidInput, NotFound
from artifacts.home import Home
from artifacts.registry import Registry
from server.jobs.events import MAX_METRICS_EVENTS, Throttle
from server.jobs.view import job_json
from server.names import parse_fine_tuned_model_id
from server.paging import Paging
from server.tables import JobRow
from tests.server.control.conftest import AdapterEngine, MakeControl, Trained, running, steps
from tests.server.control.scripts import (
    ENDLESS,
    GOOD,
    STARTED,
    child_facts,
    events,
    left_of,
    reach,
    submit,
    until,
    until_told,
)


async def test_a_job_ends_in_a_loaded_version(
    make_control: MakeControl, home: Home, registry: Registry, engine: AdapterEngine
) -> None:
    async with running(make_control()) as control:
        job = await reach(control, await submit(control, *GOOD), "succeeded")
        assert (job.version, job.error, job.pid, job.estimated_finish) == (1, None, None, None)
        version = registry.get("shop", 1)
        assert engine.known_adapters() == {version.content_hash}
        model_id = job_json(job, {})["fine_tuned_model"]
        parsed = parse_fine_tuned_model_id(model_id)
        assert parsed is not None
        assert (parsed.base_id, parsed.name, parsed.version) == ("tiny-base", "shop", 1)
        assert job.result is not None
        assert job.result["load_s"] >= 0
        told = [event.message for event in events(control, job)]
        assert told[0] == "Created fine-tuning job"
        assert told[-2:] == [
            f"New fine-tuned model created: {model_id}",
            "The job has successfully completed",
        ]
        assert any("Step 10/10: training loss=1.5000" in message for message in told)
        facts = child_facts(home, job)
        assert facts["config"]["epochs"] == 2
        assert facts["config"]["seed"] == 5
        assert facts["env"]["LORALOOP_DATABASE_URL"].endswith("registry.db")


async def test_jobs_run_one_at_a_time_in_order(make_control: MakeControl, tmp_path: Path) -> None:
    async with running(make_control()) as control:
        first = await submit(control, {"emit": STARTED}, {"sleep": 0.3}, {"publish": True})
        second = await submit(control, *GOOD)
        await reach(control, first, "running")
        assert control.jobs.store.get(second.id).status == "queued"
        await reach(control, second, "succeeded")
        ended, began = (control.jobs.store.get(job.id) for job in (first, second))
        assert ended.finished_at is not None
        assert began.started_at is not None
        assert ended.finished_at <= began.started_at
        assert (ended.version, began.version) == (1, 2)


@pytest.mark.parametrize(
    ("lines", "code", "says"),
    [
        ([{"kill": 9}], "killed", "SIGKILL"),
        ([{"kill": 11}], "killed", "SIGSEGV"),
        ([{"stderr": "ValueError: boom"}, {"exit": 1}], "internal", "ValueError: boom"),
        ([{"exit": 0}], "internal", "without publishing"),
        (
            [
                {
                    "emit": {
                        "event": "failed",
                        "code": "invalid_data",
                        "message": "1 of 9 rows is unusable",
                        "rows": [{"file": "DATA", "line": 4, "reason": "no messages"}],
                    }
                },
                {"exit": 1},
            ],
            "invalid_training_file",
            "data.jsonl:4: no messages",
        ),
        (
            [{"emit": {"event": "published", "adapter": "shop@9"}}, {"exit": 0}],
            "internal",
            "not in the registry",
        ),
    ],
)
async def test_a_failed_job_says_why_and_leaves_only_its_logs(
    make_control: MakeControl,
    home: Home,
    registry: Registry,
    lines: list[dict[str, Any]],
    code: str,
    says: str,
) -> None:
    async with running(make_control()) as control:
        begin: list[dict[str, Any]] = [{"emit": STARTED}, {"checkpoint": 3}]
        file = control.files.add(io.BytesIO(steps(*begin, *lines)), "data.jsonl")
        content = file.path.read_text().replace('"DATA"', json.dumps(str(file.path)))
        file.path.write_text(content)
        row = JobRow(
            name="shop", model="b", training_file=file.id, hyperparameters={}, settings={}, seed=1
        )
        job = await reach(control, await control.jobs.create(row), "failed")
        assert job.error is not None
        assert job.error["code"] == code
        assert says in job.error["message"]
        assert left_of(home, job) == {"progress.jsonl", "train.log"}
        assert registry.list() == []
        assert events(control, job)[-1].level == "error"
        # the next job is not disturbed
        await reach(control, await submit(control, *GOOD), "succeeded")


async def test_garbage_between_the_lines_is_not_fatal(make_control: MakeControl) -> None:
    odd = (
        {"raw": "Downloading: 100%"},
        {"raw": "[1, 2]"},
        {"raw": "\udcff\udcfe"},
        {"emit": {"event": "progress"}},
        {"emit": {"event": "progress", "step": "x", "total_steps": None, "loss": None}},
        {"emit": {"event": "evaluated", "step": 2}},
        {"emit": {"event": "news", "step": 2}},
        {"emit": {"step": 2}},
    )
    async with running(make_control()) as control:
        job = await submit(control, *odd, *GOOD)
        await reach(control, job, "succeeded")


async def test_a_version_that_fails_the_load_gate_is_removed(
    make_control: MakeControl, home: Home, registry: Registry, trained: Trained
) -> None:
    trained.draft = trained.draft.model_copy(update={"base_fingerprint": "0" * 64})
    async with running(make_control()) as control:
        job = await reach(control, await submit(control, *GOOD), "failed")
        assert job.error is not None
        assert job.error["code"] == "load_gate"
        assert "fingerprint" in job.error["message"]
        assert registry.list() == []
        assert registry.aliases("shop") == {}
        assert left_of(home, job) == {"progress.jsonl", "train.log"}


async def test_a_version_registered_by_a_dying_child_is_adopted(
    make_control: MakeControl, registry: Registry
) -> None:
    async with running(make_control()) as control:
        job = await submit(control, {"emit": STARTED}, {"register": True}, {"kill": 9})
        await reach(control, job, "succeeded")
        assert [version.id for version in registry.list()] == ["shop@1"]


async def test_cancel_leaves_nothing_and_the_process_is_gone(
    make_control: MakeControl, home: Home, registry: Registry
) -> None:
    async with running(make_control()) as control:
        job = await submit(control, *ENDLESS)
        pid = (await reach(control, job, "running")).pid
        assert pid is not None
        cancelled = await control.jobs.cancel(job.id)
        assert cancelled.status == "cancelled"
        assert cancelled.finished_at is not None
        assert not psutil.pid_exists(pid)
        assert left_of(home, job) == {"progress.jsonl", "train.log"}
        assert registry.list() == []
        with pytest.raises(Conflict, match="only a paused"):
            await control.jobs.resume(job.id)
        assert (await control.jobs.cancel(job.id)).status == "cancelled"  # says the same again


async def test_cancel_kills_a_child_that_does_not_listen(
    make_control: MakeControl, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("server.jobs.runner.CANCEL_GRACE_S", 0.3)
    async with running(make_control()) as control:
        job = await submit(control, {"emit": STARTED}, {"ignore_sigterm": True}, {"sleep": 60})
        await until_told(control, job, "Step 1/10")
        assert (await control.jobs.cancel(job.id)).status == "cancelled"


async def test_cancel_after_publishing_removes_the_version(
    make_control: MakeControl, registry: Registry, tmp_path: Path
) -> None:
    async with running(make_control()) as control:
        flag = tmp_path / "published"
        job = await submit(
            control, {"emit": STARTED}, {"publish": True}, {"touch": str(flag)}, {"wait": True}
        )
        await until(flag.exists)
        assert (await control.jobs.cancel(job.id)).status == "cancelled"
        assert registry.list() == []


async def test_queued_jobs_can_be_cancelled_and_paused(make_control: MakeControl) -> None:
    async with running(make_control(max_running_jobs=0)) as control:
        first, second = [await submit(control, *GOOD) for _ in range(2)]
        assert (await control.jobs.cancel(first.id)).status == "cancelled"
        assert (await control.jobs.pause(second.id)).status == "paused"
        assert (await control.jobs.pause(second.id)).status == "paused"
        with pytest.raises(Conflict):
            await control.jobs.pause(first.id)
        assert (await control.jobs.resume(second.id)).status == "queued"
        with pytest.raises(NotFound):
            await control.jobs.cancel("ftjob-none")


async def test_pause_keeps_checkpoints_and_resume_goes_on(
    make_control: MakeControl, home: Home, registry: Registry
) -> None:
    async with running(make_control()) as control:
        job = await submit(control, *ENDLESS, {"publish": True})
        await reach(control, job, "running")
        paused = await control.jobs.pause(job.id)
        assert (paused.status, paused.pid, paused.finished_at) == ("paused", None, None)
        assert (home.jobs / job.id / "work" / "checkpoint-7").exists()
        page = control.jobs.store.checkpoints(job.id, Paging(), [3, 7])
        assert [row.step for row in page.items] == [7, 3]
        (home.jobs / job.id / "work" / "checkpoint-3" / "optimizer.pt").unlink()
        (home.jobs / job.id / "work" / "checkpoint-3").rmdir()
        await control.jobs.resume(job.id)
        done = await reach(control, job, "succeeded")
        assert done.resumed == 1
        assert child_facts(home, job)["config"]["resume"] is True


async def test_a_foreign_sigterm_interrupts(make_control: MakeControl) -> None:
    async with running(make_control()) as control:
        job = await submit(control, *ENDLESS)
        await until_told(control, job, "Step 1/10")
        pid = control.jobs.store.get(job.id).pid
        assert pid is not None
        os.kill(pid, signal.SIGTERM)
        await reach(control, job, "interrupted")


async def test_a_job_needs_its_file(make_control: MakeControl, home: Home) -> None:
    async with running(make_control(max_running_jobs=0)) as control:
        row = JobRow(
            name="a", model="b", training_file="file-no", hyperparameters={}, settings={}, seed=1
        )
        with pytest.raises(InvalidInput, match="file-no"):
            await control.jobs.create(row)
        assert control.jobs.store.page(Paging()).items == []
        job = await submit(control, *GOOD)
        control.files.get(job.training_file).path.unlink()  # behind the server's back
    async with running(make_control()) as control:
        failed = await reach(control, job, "failed")
        assert failed.error is not None
        assert failed.error["param"] == "training_file"


async def test_a_command_that_cannot_start_fails_the_job(
    make_control: MakeControl, home: Home
) -> None:
    control = make_control()
    jobs: Any = control.jobs
    plan = jobs._limits.child
    object.__setattr__(plan, "command", (str(home.root / "no-such-python"),))
    async with running(control):
        job = await reach(control, await submit(control, *GOOD), "failed")
        assert job.error is not None
        assert "could not be started" in job.error["message"]


async def test_a_failing_database_does_not_end_the_queue(
    make_control: MakeControl, monkeypatch: pytest.MonkeyPatch
) -> None:
    control = make_control()
    real, calls = control.jobs.store.in_status, [0]

    def fails_once(statuses: Any) -> Any:
        calls[0] += 1
        if calls[0] == 1:
            raise OSError("disk I/O error")
        return real(statuses)

    monkeypatch.setattr(control.jobs.store, "in_status", fails_once)
    async with running(control):
        await reach(control, await submit(control, *GOOD), "succeeded")


def test_metrics_events_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr("server.jobs.events.time.monotonic", lambda: now[0])
    throttle, kept, total = Throttle(), 0, 100_000
    for step in range(1, total + 1):
        now[0] += 1.5
        kept += throttle.allows(step, total)
    assert kept <= MAX_METRICS_EVENTS + 2
    assert Throttle().allows(1, 10)
    fast = Throttle()
    assert sum(fast.allows(step, None) for step in range(100)) == 1


async def test_a_failure_of_our_own_ends_the_child_and_the_job(
    make_control: MakeControl, home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with running(make_control()) as control:
        pids: list[int | None] = []

        def fail(job_id: str, *_: Any, **__: Any) -> None:
            pids.append(control.jobs.store.get(job_id).pid)
            raise OSError("disk I/O error")

        monkeypatch.setattr(control.jobs.store, "add_event", fail)
        job = await reach(control, await submit(control, *ENDLESS), "failed")
        assert job.error is not None
        assert "OSError" in job.error["message"]
        assert pids[0] is not None
        assert not psutil.pid_exists(pids[0])
        await until(lambda: left_of(home, job) == {"progress.jsonl", "train.log"})
