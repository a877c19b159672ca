"""A fine-tuning job runs in another process; streams go on, and its adapter answers at once."""

from __future__ import annotations

import json
import threading
import time

import psutil

from tests.live.conftest import LiveServer

DONE = {"succeeded", "failed", "cancelled"}


def examples() -> bytes:
    rows = [
        {
            "messages": [
                {"role": "user", "content": f"Is item {i} in stock?"},
                {"role": "assistant", "content": f"Ahoy! Item {i} be in the hold, matey."},
            ]
        }
        for i in range(40)
    ]
    return "\n".join(json.dumps(row) for row in rows).encode()


class Chats:
    """Streams one answer after the other until told to stop, and remembers when each ended."""

    def __init__(self, live: LiveServer) -> None:
        self._client = live.openai
        self._model = "loraloop-embedded"
        self._stop = threading.Event()
        self.ended: list[float] = []
        self.errors: list[Exception] = []
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> Chats:
        self._thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._stop.is_set():
            try:
                stream = self._client.chat.completions.create(
                    model=self._model,
                    messages=[{"role": "user", "content": "Hello, who are you?"}],
                    max_tokens=24,
                    stream=True,
                )
                reasons = [c.finish_reason for chunk in stream for c in chunk.choices]
                assert reasons[-1] in ("stop", "length")
            except Exception as error:  # the test's own thread reports it
                self.errors.append(error)
                return
            self.ended.append(time.time())


def test_streams_flow_before_during_and_after_a_job_in_another_process(live: LiveServer) -> None:
    client = live.openai
    children: set[int] = set()
    with Chats(live) as chats:
        while len(chats.ended) < 2 and not chats.errors:
            time.sleep(0.05)
        started = time.time()
        file = client.files.create(file=("pirate.jsonl", examples()), purpose="fine-tune")
        job = client.fine_tuning.jobs.create(
            model="loraloop-embedded",
            training_file=file.id,
            suffix="pirate",
            method={
                "type": "supervised",
                "supervised": {"hyperparameters": {"n_epochs": 4, "batch_size": 8}},
            },
        )
        while job.status not in DONE:
            time.sleep(0.2)
            children |= {c.pid for c in psutil.Process(live.process.pid).children()}
            job = client.fine_tuning.jobs.retrieve(job.id)
        finished = time.time()
        answer = client.chat.completions.create(
            model=job.fine_tuned_model or "none",
            messages=[{"role": "user", "content": "Is item 7 in stock?"}],
            max_tokens=8,
        )
        while not any(t > finished for t in chats.ended) and not chats.errors:
            time.sleep(0.05)

    assert job.status == "succeeded", job.error
    assert answer.choices[0].finish_reason in ("stop", "length")
    assert children, "the job ran in a process of its own"
    assert live.process.pid not in children
    assert not chats.errors
    assert any(t < started for t in chats.ended)
    assert sum(started < t < finished for t in chats.ended) >= 3, "chats went on meanwhile"
    assert any(t > finished for t in chats.ended)
    events = client.fine_tuning.jobs.list_events(job.id, limit=100).data
    assert {e.type for e in events} >= {"message", "metrics"}
