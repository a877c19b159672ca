"""The main job, end to end: train, hot-load, chat, train again, split traffic, hot-load under load.

Everything happens through a server that this starts on a free port with a fresh home. It asserts
its own claims: the exit code is 0 only if all of them hold.
"""

from __future__ import annotations

import json
import math
import shutil
import signal
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
from openai import OpenAI, OpenAIError
from rich.console import Console

from demo import claims as claim
from demo.chat import ask, ask_side_by_side
from demo.claims import Claim
from demo.dataset import DataSet, look_at
from demo.jobs import Trained, create, follow, upload
from demo.processes import (
    DemoFailed,
    Process,
    free_port,
    start_locust,
    start_server,
    wait_until_ready,
)
from demo.report import print_report, print_verdict

INTERRUPTED = 130  # the shell's code for Ctrl-C
BATCH_SIZE = 4  # small: on a CPU more updates per row cost little and learn more
MAX_HELD_OUT_ROWS = 120  # each for validation and test; a large file would be measured for minutes


@dataclass(frozen=True)
class Plan:
    """How much to train: ``epochs`` over the data, but no more steps than the demo has time for."""

    epochs: float
    max_steps: int

    def settings(self, num_rows: int) -> dict[str, Any]:
        held_out = held_out_share(num_rows)
        return {
            "max_steps": self.num_steps(num_rows),
            "batch_size": BATCH_SIZE,
            "split": [1 - 2 * held_out, held_out, held_out],
        }

    def num_steps(self, num_rows: int) -> int:
        train_share = 1 - 2 * held_out_share(num_rows)
        wanted = math.ceil(self.epochs * num_rows * train_share / BATCH_SIZE)
        return max(1, min(wanted, self.max_steps))

    def is_capped(self, num_rows: int) -> bool:
        return self.num_steps(num_rows) == self.max_steps


def held_out_share(num_rows: int) -> float:
    """The share of the rows that validation and test get each."""
    return min(0.1, MAX_HELD_OUT_ROWS / num_rows)


FIRST = Plan(epochs=4, max_steps=240)
SECOND = Plan(epochs=6, max_steps=360)
THIRD = Plan(epochs=1, max_steps=60)
WEIGHTS = (70.0, 30.0)
LOAD_WARM_UP_REQUESTS = 20  # answered before the hot load begins
LOAD_AFTER_S = 5.0  # traffic after it
MIN_LOAD_S = 20.0


@dataclass(frozen=True)
class Stage:
    """What every scene needs."""

    console: Console
    client: OpenAI
    url: str
    folder: Path
    dataset: DataSet

    def scene(self, text: str) -> None:
        self.console.print(f"\n[bold]{text}[/bold]", highlight=False)

    def say(self, text: str) -> None:
        self.console.print(f"  {text}", highlight=False)

    def admin(self, method: str, path: str, body: Mapping[str, Any] | None = None) -> Any:
        """An admin call. Raises DemoFailed with the server's own words."""
        answer = httpx.request(method, f"{self.url}{path}", json=body, timeout=120)
        if answer.is_error:
            raise DemoFailed(f"{method} {path}: HTTP {answer.status_code}: {answer.text}")
        return answer.json() if answer.content else None


def run_demo(data: Path | None, *, keep: bool) -> int:
    """The exit code: 0 if the story went through and every claim holds."""
    console = Console(width=None if Console().is_terminal else 110)
    try:
        dataset = look_at(data)
    except DemoFailed as error:
        console.print(f"[bold red]The demo cannot start:[/] {error}", highlight=False)
        return 1
    folder = Path(tempfile.mkdtemp(prefix="loraloop-demo-"))
    exit_code = 1
    try:
        exit_code = 0 if play(console, folder, dataset) else 1
    except (DemoFailed, OpenAIError, httpx.HTTPError) as error:
        console.print(f"\n[bold red]The demo failed:[/] {error}", highlight=False)
        print_logs(console, folder)
    except KeyboardInterrupt:
        console.print("\nInterrupted; everything that the demo started has been stopped.")
        exit_code = INTERRUPTED
    if keep or exit_code == 1:
        console.print(f"Logs, adapters and Locust's report: {folder}")
    else:
        shutil.rmtree(folder)
    return exit_code


def play(console: Console, folder: Path, dataset: DataSet) -> bool:
    """Start the server, tell the story, stop the server; whether all claims hold."""
    started = time.monotonic()
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    with start_server(folder, port) as server:
        client = OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0, timeout=120)
        stage = Stage(console, client, url, folder, dataset)
        stage.scene("1. A server on the embedded base")
        stage.say(f"{url} ready after {wait_until_ready(server, url):.1f} s")
        found = tell(stage)
    holds = print_verdict(console, found)
    took_s = time.monotonic() - started
    verdict = "[green]All claims hold[/]" if holds else "[bold red]A claim failed[/]"
    console.print(f"\n{verdict} after {took_s:.0f} s.", highlight=False)
    return holds


def tell(stage: Stage) -> list[Claim]:
    """The story. Returns its claims."""
    dataset = stage.dataset
    stage.scene(f"2. Upload {dataset.path.name} ({dataset.num_rows} rows)")
    file_id = upload(stage.client, dataset)
    stage.say(file_id)

    stage.scene("3. Fine-tune: the first version")
    first = train(stage, file_id, FIRST)

    stage.scene("4. The same question to base and adapter")
    models = [stage.client.models.list().data[0].id, first.fine_tuned_model]
    for question in dataset.shown:
        answers = ask_side_by_side(stage.client, stage.console, models, question)

    stage.scene("5. Fine-tune longer: the second version")
    second = train(stage, file_id, SECOND)

    stage.scene("6. Split the traffic of the bare name")
    weights = dict(zip((first.id, second.id), WEIGHTS, strict=True))
    arms = [{"model": model, "weight": weight} for model, weight in weights.items()]
    stage.admin("PUT", f"/admin/experiments/{dataset.name}", {"arms": arms})
    stage.say(", ".join(f"{arm['weight']:.0f} % {arm['model']}" for arm in arms))

    stage.scene("7. Locust streams, while a third version is trained and hot-loaded")
    third, before, after, load = hot_load_under_load(stage, file_id)
    print_report(stage.console, load, weights, third)
    return [
        *(claim.learned(version) for version in (first, second, third)),
        claim.differs(answers[0].text, answers[1].text),
        claim.nothing_failed(load),
        claim.split_holds(load, weights),
        claim.loaded_under_load(load, third),
        claim.answered_by(before, after, first.id, third.id),
    ]


def train(stage: Stage, file_id: str, plan: Plan) -> Trained:
    """One fine-tuning job, followed to its end."""
    num_rows = stage.dataset.num_rows
    if plan.is_capped(num_rows):
        stage.say(
            f"capped at {plan.max_steps} steps, {plan.max_steps * BATCH_SIZE} rows, to stay "
            "within minutes; `loraloop train` has no cap"
        )
    job_id = create(stage.client, stage.dataset, file_id, plan.settings(num_rows))
    version = follow(stage.client, stage.console, job_id)
    stage.say(
        f"{version.id} in {version.duration_s:.0f} s, hot-loaded in "
        f"{version.load_s * 1000:.0f} ms; "
        f"held-out perplexity {version.base_perplexity:.2f} → {version.adapter_perplexity:.2f}"
    )
    return version


def hot_load_under_load(stage: Stage, file_id: str) -> tuple[Trained, str, str, dict[str, Any]]:
    """Train, hot-load and promote a version while Locust streams.

    Returns the version, who answered as champion before and after, and Locust's summary.
    """
    prompts = stage.folder / "prompts.txt"
    questions = [question.replace("\n", " ") for question in stage.dataset.questions]
    prompts.write_text("\n".join(questions), encoding="utf-8")
    name, champion = stage.dataset.name, f"{stage.dataset.name}@champion"
    with start_locust(stage.folder, stage.url, name, prompts) as locust:
        started = time.monotonic()
        wait_for_traffic(stage, locust)
        before = ask(stage.client, champion, questions[0]).version
        third = train(stage, file_id, THIRD)
        alias = f"/admin/adapters/{name}/aliases/champion"
        stage.admin("PUT", alias, {"version": int(third.id.split("@")[1])})
        after = ask(stage.client, champion, questions[0]).version
        stage.say(f"alias champion moved: {before} → {after}")
        time.sleep(max(LOAD_AFTER_S, MIN_LOAD_S - (time.monotonic() - started)))
        locust.send(signal.SIGUSR1)
        locust.wait(60)
    summary = stage.folder / "locust.json"
    if not summary.exists():
        raise DemoFailed(f"Locust wrote no summary (exit code {locust.exit_code})")
    load: dict[str, Any] = json.loads(summary.read_text(encoding="utf-8"))
    return third, before, after, load


def wait_for_traffic(stage: Stage, locust: Process) -> None:
    """Until Locust's users have been answered a few times."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        if locust.exit_code is not None:
            raise DemoFailed(f"Locust ended with exit code {locust.exit_code}")
        arms = stage.admin("GET", "/admin/stats")["arms"]
        if sum(arm["requests"] for arm in arms.values()) >= LOAD_WARM_UP_REQUESTS:
            return
        time.sleep(0.2)
    raise DemoFailed("Locust's users got no answers within 60 s")


def print_logs(console: Console, folder: Path) -> None:
    """The ends of the logs that exist."""
    for log in sorted(folder.glob("*.log")):
        console.rule(f"end of {log.name}")
        lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
        console.print("\n".join(lines[-25:]), highlight=False, markup=False)
