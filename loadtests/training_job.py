"""A fine-tuning job over HTTP that trains until it is told to stop: for measurements beside it."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import requests

JSON = dict[str, Any]
ENDLESS: JSON = {
    "max_steps": 2_000,  # progress is recorded in at most 500 pieces
    "eval_steps": 1_000_000,  # at the end only
    "early_stopping_patience": None,
    "logging_steps": 1,
}
WORKS_WITHIN_S = 300.0


class JobFailed(Exception):
    """The job ended, or did no step in time; the message says what the server said."""


class EndlessJob:
    """One job; ``work`` returns when it makes steps, ``rest`` when its process has ended."""

    def __init__(self, url: str, model: str, data: Path, settings: JSON, api_key: str) -> None:
        """Uploads ``data`` and creates the job at the first ``work``. Raises as `requests` does."""
        self._url = url.rstrip("/").removesuffix("/v1")
        self._session = requests.Session()
        if api_key:
            self._session.headers["Authorization"] = f"Bearer {api_key}"
        with data.open("rb") as stream:
            file = self._send(
                "POST", "/v1/files", files={"file": stream}, data={"purpose": "fine-tune"}
            )
        self._order = {
            "model": model,
            "training_file": file["id"],
            "suffix": "beside",
            "loraloop": ENDLESS | settings,
        }
        self._id = ""

    def work(self) -> None:
        """Start or resume, and wait until it steps. Raises JobFailed."""
        if not self._id:
            self._id = str(self._send("POST", "/v1/fine_tuning/jobs", json=self._order)["id"])
            before = 0
        else:
            before = self.step()
            self._send("POST", f"/v1/fine_tuning/jobs/{self._id}/resume")
        self._wait(lambda: self.step() > before, "made no step")

    def rest(self) -> None:
        """Ask for a checkpoint and wait until the process is gone."""
        self._send("POST", f"/v1/fine_tuning/jobs/{self._id}/pause")

    def cancel(self) -> None:
        """Leave nothing of it; a job that has ended by itself stays as it is."""
        if self._id:
            self._request("POST", f"/v1/fine_tuning/jobs/{self._id}/cancel")

    def step(self) -> int:
        """The last step it told; the server records at most one per second."""
        job = self._send("GET", f"/v1/fine_tuning/jobs/{self._id}")
        if job["status"] in ("failed", "cancelled", "succeeded"):
            raise JobFailed(f"the job has {job['status']}: {job['error']}")
        return int((job["loraloop"]["progress"] or {}).get("step") or 0)

    def messages(self) -> list[str]:
        """What its history says, oldest first, losses left out."""
        path = f"/v1/fine_tuning/jobs/{self._id}/events?limit=1000&order=asc"
        return [event["message"] for event in self._send("GET", path)["data"]
                if event["type"] == "message"]  # fmt: skip

    def forget_statistics(self) -> None:
        """Let the server's percentiles start anew."""
        self._send("POST", "/admin/stats/reset?scope=all")

    def statistics(self) -> JSON:
        """The server's own figures since then."""
        return self._send("GET", "/admin/stats")

    def _wait(self, is_so: Callable[[], bool], what: str) -> None:
        deadline = time.monotonic() + WORKS_WITHIN_S
        while not is_so():
            if time.monotonic() > deadline:
                raise JobFailed(f"the job {what} within {WORKS_WITHIN_S:g} s: {self.messages()}")
            time.sleep(0.2)

    def _send(self, method: str, path: str, **body: Any) -> JSON:
        answer = self._request(method, path, **body)
        if not answer.ok:
            raise JobFailed(f"{method} {path}: HTTP {answer.status_code}: {answer.text[:300]}")
        found: JSON = answer.json()
        return found

    def _request(self, method: str, path: str, **body: Any) -> requests.Response:
        return self._session.request(method, self._url + path, timeout=120, **body)
