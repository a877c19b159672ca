"""OpenVINO GenAI's continuous batching behind OpenAI's protocol, as far as a benchmark needs it.

``.venv-peers/openvino/bin/python loadtests/openvino_server.py --model IR_FOLDER --port PORT``

One thread owns the pipeline: it adds requests, steps, and hands every new token to its stream. No
chat template: the messages' text is the prompt, and ``usage`` counts what the pipeline was given.
Greedy only; the end of a sequence is ignored. Runs outside the project's environment and imports
nothing of it.
"""

from __future__ import annotations

import argparse
import itertools
import json
import queue
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

JSON = dict[str, Any]
MODEL_ID = "openvino"
PERFORMANCE = {"INFERENCE_PRECISION_HINT": "bf16"}


class Pipeline:
    """Continuous batching in a thread of its own. ``submit`` may be called from any thread."""

    def __init__(self, folder: Path, threads: int, cache_gb: int, batched_tokens: int) -> None:
        import openvino as ov  # type: ignore[import-not-found, unused-ignore]
        import openvino_genai as genai  # type: ignore[import-not-found, unused-ignore]
        from tokenizers import Tokenizer

        scheduling = genai.SchedulerConfig()
        scheduling.cache_size = cache_gb
        scheduling.max_num_batched_tokens = batched_tokens
        properties = PERFORMANCE | {"INFERENCE_NUM_THREADS": threads}
        self._genai, self._tensor = genai, ov.Tensor
        self._pipe = genai.ContinuousBatchingPipeline(str(folder), scheduling, "CPU", properties)
        self._tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        self._incoming: queue.SimpleQueue[tuple[list[int], int, queue.SimpleQueue[Any]]]
        self._incoming = queue.SimpleQueue()
        threading.Thread(target=self._run, daemon=True).start()

    def encode(self, text: str) -> list[int]:
        ids: list[int] = self._tokenizer.encode(text, add_special_tokens=False).ids
        return ids

    def decode(self, ids: list[int]) -> str:
        text: str = self._tokenizer.decode(ids, skip_special_tokens=False)
        return text

    def submit(self, ids: list[int], num_new: int) -> queue.SimpleQueue[Any]:
        """Where lists of new token ids arrive; None ends them, an exception is one."""
        outgoing: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._incoming.put((ids, num_new, outgoing))
        return outgoing

    def _run(self) -> None:
        live: list[tuple[Any, queue.SimpleQueue[Any]]] = []
        numbers = itertools.count()
        try:
            while True:
                while not live or not self._incoming.empty():
                    ids, num_new, outgoing = self._incoming.get()
                    live.append((self._add(next(numbers), ids, num_new), outgoing))
                self._pipe.step()
                for handle, outgoing in live:
                    self._hand_over(handle, outgoing)
                live = [each for each in live if not self._is_over(each[0])]
        except Exception as error:
            for _, outgoing in live:
                outgoing.put(error)
            raise

    def _add(self, number: int, ids: list[int], num_new: int) -> Any:
        import numpy as np

        config = self._genai.GenerationConfig()
        config.max_new_tokens = num_new
        config.ignore_eos = True
        config.do_sample = False
        tensor = self._tensor(np.array([ids], dtype=np.int64))
        return self._pipe.add_request(number, tensor, config)

    def _hand_over(self, handle: Any, outgoing: queue.SimpleQueue[Any]) -> None:
        while handle.can_read():
            for output in handle.read().values():
                outgoing.put(list(output.generated_ids))
        if self._is_over(handle):
            outgoing.put(None)

    def _is_over(self, handle: Any) -> bool:
        return bool(handle.get_status() != self._genai.GenerationStatus.RUNNING)


class Handler(BaseHTTPRequestHandler):
    """``GET /v1/models`` and ``POST /v1/chat/completions``."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    pipeline: Pipeline

    def log_message(self, format: str, *args: object) -> None:
        """Silence."""

    def do_GET(self) -> None:
        self._reply({"data": [{"id": MODEL_ID, "object": "model"}]})

    def do_POST(self) -> None:
        body: JSON = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        ids = self.pipeline.encode("".join(message["content"] for message in body["messages"]))
        tokens = self.pipeline.submit(ids, int(body["max_tokens"]))
        if body.get("stream"):
            self._stream(tokens, len(ids))
            return
        made = list(itertools.chain.from_iterable(_until_none(tokens)))
        choice = {"message": {"content": self.pipeline.decode(made)}, "finish_reason": "length"}
        self._reply({"choices": [choice], "usage": _usage(len(ids), len(made))})

    def _stream(self, tokens: queue.SimpleQueue[Any], num_prompt: int) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        num_new = 0
        for ids in _until_none(tokens):
            num_new += len(ids)
            self._event(
                {"choices": [{"index": 0, "delta": {"content": self.pipeline.decode(ids)}}]}
            )
        last = {"index": 0, "delta": {}, "finish_reason": "length"}
        self._event({"choices": [last], "usage": _usage(num_prompt, num_new)})
        self._chunk(b"data: [DONE]\n\n")
        self._chunk(b"")

    def _event(self, event: JSON) -> None:
        self._chunk(f"data: {json.dumps(event)}\n\n".encode())

    def _chunk(self, payload: bytes) -> None:
        self.wfile.write(b"%x\r\n%s\r\n" % (len(payload), payload))
        self.wfile.flush()

    def _reply(self, answer: JSON) -> None:
        payload = json.dumps(answer).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(payload)))
        self.end_headers()
        self.wfile.write(payload)


def _until_none(tokens: queue.SimpleQueue[Any]) -> Any:
    while (item := tokens.get()) is not None:
        if isinstance(item, Exception):
            raise item
        yield item


def _usage(num_prompt: int, num_new: int) -> JSON:
    return {"prompt_tokens": num_prompt, "completion_tokens": num_new}


def main() -> None:
    """Load, then serve until killed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--cache-gb", type=int, default=1)
    parser.add_argument("--batched-tokens", type=int, default=512)
    options = parser.parse_args()
    Handler.pipeline = Pipeline(
        options.model, options.threads, options.cache_gb, options.batched_tokens
    )
    ThreadingHTTPServer.daemon_threads = True
    ThreadingHTTPServer(("127.0.0.1", options.port), Handler).serve_forever()


if __name__ == "__main__":
    main()
