"""A running experiment under load: ``locust -f loadtests/ab.py --host URL --model NAME``.

Every request is a new user. At the end the answers per version must follow the arms' weights
within four standard deviations, else the exit code is 1.
"""

from __future__ import annotations

from typing import Any

import requests
from locust import events
from locust.env import Environment
from locust.runners import WorkerRunner

from loadtests.options import bearer, options_of
from loadtests.report import run_of
from loadtests.split import shares
from loadtests.users import StreamingUser


class Split(StreamingUser):
    """Asks for the bare name in ``--model``; the server's experiment picks the version."""

    def next_model(self) -> str:
        return str(self.options.model)


@events.test_start.add_listener
def need_model(environment: Environment, **_: object) -> None:
    """Without a name there is no experiment to measure."""
    if not options_of(environment).model:
        problem = "scenario ab needs --model NAME, the name that the experiment runs under"
        run_of(environment).problems.append(problem)
        if environment.runner is not None:
            environment.runner.quit()


@events.test_stop.add_listener
def check_split(environment: Environment, **_: object) -> None:
    """Compare the answers per version with the weights that the server holds."""
    if isinstance(environment.runner, WorkerRunner):
        return
    run = run_of(environment)
    counts = {version: row.num_requests - row.num_errors for version, row in run.tally.rows.items()}
    try:
        weights = fetch_weights(environment)
    except (requests.RequestException, ValueError, KeyError) as error:
        run.problems.append(f"the experiment's weights could not be read: {error}")
        return
    for share in shares(weights, counts):
        print(f"split: {share}")
        if not share.is_within:
            run.problems.append(f"the split is off: {share}")


def fetch_weights(environment: Environment) -> dict[str, float]:
    """Weight per arm from ``GET /admin/experiments/{name}``."""
    options = options_of(environment)
    answer = requests.get(
        f"{environment.host}/admin/experiments/{options.model}",
        headers=bearer(options.admin_key),
        timeout=30,
    )
    answer.raise_for_status()
    arms: list[dict[str, Any]] = answer.json()["arms"]
    return {str(arm["model"]): float(arm["weight"]) for arm in arms}
