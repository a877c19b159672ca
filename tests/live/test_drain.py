"""A real process is told to stop: what runs ends well, what waits is sent elsewhere, jobs keep
their checkpoints; told twice, it goes at once."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
from openai import OpenAI

from tests.conftest import TinyBase
from tests.live.zygote import Forked, Zygote
from tests.server.conftest import wait_until

CHAT = "/v1/chat/completions"
NUM_RUNNING = 4
NUM_WAITING = 40
QUICK_TRAINER = Path(__file__).with_name("quick_trainer.py")
Start = Callable[..., Forked]


@pytest.fixture
def start(zygote: Zygote, tiny_base: TinyBase, tmp_path: Path) -> Start:
    """``start(*options, **variables)``: always on the same home."""

    def start_there(*options: str, **variables: str) -> Forked:
        base = ("--model", str(tiny_base("llama")), "--dtype", "float32")
        limits = {"LORALOOP_MAX_NUM_SEQS": str(NUM_RUNNING), **variables}
        return zygote.start(tmp_path / "home", *base, *options, trainer=QUICK_TRAINER, **limits)

    return start_there


def question(max_tokens: int, **fields: Any) -> dict[str, Any]:
    messages = [{"role": "user", "content": "Tell me everything."}]
    body = {"model": "tiny-llama", "messages": messages, "max_tokens": max_tokens}
    return {**body, "ignore_eos": True, **fields}


@dataclass
class Got:
    """What one client got, and when."""

    status: int
    has_end: bool
    retry_after: str | None
    code: str | None
    at: float


async def ask(http: httpx.AsyncClient, body: dict[str, Any]) -> Got:
    async with http.stream("POST", CHAT, json=body) as response:
        text = (await response.aread()).decode()
    has_end, code = False, None
    if response.status_code != 200:
        code = json.loads(text)["error"]["code"]
    elif body.get("stream"):
        has_end = text.endswith("data: [DONE]\n\n")
    else:
        has_end = json.loads(text)["choices"][0]["finish_reason"] == "length"
    retry_after = response.headers.get("retry-after")
    return Got(response.status_code, has_end, retry_after, code, time.monotonic())


def told(response: httpx.Response) -> dict[str, Any]:
    body: dict[str, Any] = response.json()
    assert response.is_success, body
    return body


async def until_engine(http: httpx.AsyncClient, **wanted: int) -> None:
    while True:
        engine = told(await http.get("/admin/stats"))["engine"]
        if all(engine[name] == number for name, number in wanted.items()):
            return
        await asyncio.sleep(0.01)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_every_request_in_flight_gets_its_end(start: Start, number: int) -> None:
    server = start()
    limits = httpx.Limits(max_connections=100)
    url = server.wait_ready()
    async with httpx.AsyncClient(base_url=url, limits=limits, timeout=60) as http:
        kinds = [{"stream": index % 2 == 0} for index in range(NUM_RUNNING + NUM_WAITING)]
        asked = [asyncio.create_task(ask(http, question(1000, **kind))) for kind in kinds]
        await until_engine(http, running=NUM_RUNNING, waiting=NUM_WAITING)
        server.signal(number)
        told_at = time.monotonic()
        while (ready := await http.get("/health/ready")).status_code == 200:
            assert time.monotonic() - told_at < 1
        assert ready.json()["reason"] == "draining"
        late = await ask(http, question(5))
        answers = await asyncio.gather(*asked)
    assert server.wait() == 0, server.said
    ran = [got for got in answers if got.status == 200]
    assert len(ran) == NUM_RUNNING
    assert all(got.has_end for got in ran)
    refused = [late, *(got for got in answers if got.status != 200)]
    assert {(got.status, got.code) for got in refused} == {(503, "engine_closed")}
    assert all(int(got.retry_after or 0) > 0 for got in refused)
    assert max(got.at for got in refused) < min(got.at for got in ran), "they waited for nothing"
    assert max(got.at for got in refused) - told_at < 1.5
    assert "Traceback" not in server.said


def test_a_client_that_retries_gets_its_answer_from_the_next_server(start: Start) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    first = start("--port", port, LORALOOP_MAX_NUM_SEQS="1")
    first.wait_ready()
    answers: list[Any] = []

    def go(max_tokens: int) -> None:
        with OpenAI(
            base_url=f"http://127.0.0.1:{port}/v1", api_key="none", max_retries=5
        ) as client:
            body = question(max_tokens)
            extra = {"ignore_eos": body.pop("ignore_eos")}
            answers.append(client.chat.completions.create(**body, extra_body=extra))

    clients = [threading.Thread(target=go, args=(tokens,)) for tokens in (1500, 7, 8, 9)]
    for client in clients:
        client.start()
        time.sleep(0.1)  # the long one runs, the others wait
    first.signal(signal.SIGTERM)
    assert first.wait() == 0, first.said
    second = start("--port", port)
    for client in clients:
        client.join(60)
    lengths = sorted(answer.usage.completion_tokens for answer in answers)
    assert lengths == [7, 8, 9, 1500]
    second.signal(signal.SIGTERM)
    assert second.wait() == 0, second.said


def submit_job(http: httpx.Client, steps: int = 10_000) -> str:
    order = json.dumps({"steps": steps, "step_s": 0.02})
    form = {"file": ("train.jsonl", order)}
    file = http.post("/v1/files", files=form, data={"purpose": "fine-tune"}).json()["id"]
    body = {"model": "tiny-llama", "training_file": file, "suffix": "shop"}
    return str(http.post("/v1/fine_tuning/jobs", json=body).json()["id"])


def job_of(http: httpx.Client, job_id: str) -> dict[str, Any]:
    job: dict[str, Any] = told(http.get(f"/v1/fine_tuning/jobs/{job_id}"))["loraloop"]
    return job


def until_status(http: httpx.Client, job_id: str, status: str) -> dict[str, Any]:
    deadline = time.monotonic() + 20
    while (job := job_of(http, job_id))["status"] != status:
        assert time.monotonic() < deadline, job
        time.sleep(0.02)
    return job


def resumed_from(http: httpx.Client, job_id: str) -> str:
    events = told(http.get(f"/v1/fine_tuning/jobs/{job_id}/events?limit=1000"))["data"]
    facts = [event["data"] for event in events if "Training started" in event["message"]]
    return str(facts[0]["resumed_from"])


def runs(pid: int) -> bool:
    with suppress(psutil.Error):
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    return False


def stream_on(url: str) -> None:
    """Reads an answer that is far from its end; however it ends."""
    with suppress(httpx.HTTPError), httpx.stream("POST", url + CHAT, json=question(1900)) as stream:
        stream.read()


def upload_on(url: str, is_over: threading.Event) -> None:
    """An upload whose end never comes."""
    host, port = url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port))) as line, suppress(OSError):
        head = "POST /v1/files HTTP/1.1\r\nHost: x\r\nContent-Length: 100000\r\n"
        line.sendall(f"{head}Content-Type: multipart/form-data; boundary=b\r\n\r\n--b\r\n".encode())
        while not is_over.wait(0.05):
            line.sendall(b"x")


def test_training_is_stopped_beside_the_answers(start: Start) -> None:
    server = start()
    url = server.wait_ready()
    with httpx.Client(base_url=url, timeout=30) as http:
        job_id = submit_job(http)
        pid = until_status(http, job_id, "running")["pid"]
        reader = threading.Thread(target=stream_on, args=(url,))
        reader.start()
        while not told(http.get("/admin/stats"))["engine"]["running"]:
            time.sleep(0.01)
        server.signal(signal.SIGTERM)
        job = until_status(http, job_id, "interrupted")
        assert reader.is_alive(), "the answer goes on"
    assert job["pid"] is None
    assert not runs(pid)
    reader.join(30)
    assert server.wait() == 0, server.said


@pytest.mark.parametrize("is_frozen", [False, True])
def test_a_second_signal_ends_it_at_once_and_training_hears_of_it(
    start: Start, is_frozen: bool
) -> None:
    server = start()
    url = server.wait_ready()
    is_over = threading.Event()
    with httpx.Client(base_url=url, timeout=30) as http:
        job_id = submit_job(http)
        pid = until_status(http, job_id, "running")["pid"]
        clients = [threading.Thread(target=stream_on, args=(url,)) for _ in range(6)]
        clients.append(threading.Thread(target=upload_on, args=(url, is_over)))
        for client in clients:
            client.start()
        while told(http.get("/admin/stats"))["engine"]["running"] != NUM_RUNNING:
            time.sleep(0.01)
    if is_frozen:
        os.kill(pid, signal.SIGSTOP)
    began = time.monotonic()
    for number in (signal.SIGTERM, signal.SIGINT):  # at once: nobody else tells the training
        server.signal(number)
    assert server.wait() in (128 + signal.SIGTERM, 128 + signal.SIGINT), server.said
    assert time.monotonic() - began < 2
    is_over.set()
    for client in clients:
        client.join(10)
    while runs(pid):
        assert time.monotonic() - began < 5, "nobody told the training process"
        time.sleep(0.02)
    server = start()
    with httpx.Client(base_url=server.wait_ready(), timeout=30) as http:
        until_status(http, job_id, "interrupted")
        http.post(f"/v1/fine_tuning/jobs/{job_id}/resume")
        until_status(http, job_id, "running")
        assert resumed_from(http, job_id).startswith("checkpoint-"), "it goes on where it was"
    server.kill()


def test_a_killed_servers_job_goes_on_by_itself_if_so_configured(start: Start) -> None:
    server = start()
    with httpx.Client(base_url=server.wait_ready(), timeout=30) as http:
        job_id = submit_job(http)
        while not http.get(f"/v1/fine_tuning/jobs/{job_id}/checkpoints").json()["data"]:
            time.sleep(0.02)
        pid = job_of(http, job_id)["pid"]
    server.kill()
    server = start(LORALOOP_RESUME_INTERRUPTED_JOBS="true")
    with httpx.Client(base_url=server.wait_ready(), timeout=30) as http:
        # The record says "running" until the former server's job has been settled.
        wait_until(lambda: job_of(http, job_id)["resumed"] == 1, 30)
        until_status(http, job_id, "running")
        assert resumed_from(http, job_id).startswith("checkpoint-")
        assert not runs(pid)
    server.kill()
