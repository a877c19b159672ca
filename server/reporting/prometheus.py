"""/metrics: what ``reporting.telemetry`` and the engine know, under the names vLLM gave them.

Gateways route by some of these names. Values are read when asked for, so a request pays nothing;
the number of label values is bounded by the telemetry itself.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)
from prometheus_client.registry import Collector

from server.reporting.telemetry import Tally
from server.resolve import BASE
from server.state import Server

_TTFT_BOUNDS = (
    *(0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75),
    *(1.0, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0, 80.0, 160.0, 640.0),
)
_ITL_BOUNDS = (
    *(0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3),
    *(0.4, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0, 80.0),
)
_LONG_BOUNDS = (
    *(0.01, 0.03, 0.1, 0.3, 0.5, 0.8, 1.0, 1.5, 2.0, 2.5, 5.0, 10.0, 15.0, 20.0, 30.0, 40.0),
    *(50.0, 60.0, 120.0, 240.0, 480.0, 960.0, 1920.0),
)
_HISTOGRAMS = (
    ("vllm:time_to_first_token_seconds", "ttft", _TTFT_BOUNDS, "Receipt to first token."),
    ("vllm:inter_token_latency_seconds", "itl", _ITL_BOUNDS, "Between two tokens."),
    ("vllm:request_queue_time_seconds", "queue", _LONG_BOUNDS, "Waiting to be scheduled."),
    ("vllm:e2e_request_latency_seconds", "e2e", _LONG_BOUNDS, "Receipt to last token."),
)
_COUNTERS = (
    ("loraloop:requests", "requests", "Accepted requests."),
    ("loraloop:request_errors", "errors", "Accepted requests that ended in an error."),
    ("loraloop:requests_aborted", "aborted", "Requests whose client left."),
    ("loraloop:requests_dropped", "dropped", "Requests whose client did not read."),
    ("loraloop:requests_timed_out", "timed_out", "Requests not finished by their deadline."),
    ("loraloop:requests_rejected", "rejected", "Requests refused for overload."),
    ("vllm:prompt_tokens", "prompt_tokens", "Prompt tokens."),
    ("vllm:prefix_cache_hits", "cached_tokens", "Prompt tokens found in the prefix cache."),
    ("vllm:generation_tokens", "generated_tokens", "Generated tokens."),
)


class ServerMetrics(Collector):
    """Reads one server at each scrape, on the event loop that counts."""

    def __init__(self, server: Server) -> None:
        self._server = server
        self._version_ids: Mapping[str, str] = {}
        self._registry = CollectorRegistry()
        self._registry.register(self)

    def render(self, version_ids: Mapping[str, str]) -> bytes:
        """The text that Prometheus reads. ``version_ids``: content hash → ``name@3``."""
        self._version_ids = version_ids
        return generate_latest(self._registry)

    def collect(self) -> Iterator[Metric]:
        tallies = [(self._label(key), t) for key, t in self._server.telemetry.adapters()]
        for name, attribute, bounds, text in _HISTOGRAMS:
            yield _histogram(name, attribute, bounds, text, tallies)
        for name, attribute, text in _COUNTERS:
            counter = CounterMetricFamily(name, text, labels=["model_name"])
            for label, tally in tallies:
                counter.add_metric([label], getattr(tally, attribute))
            yield counter
        yield from self._engine_metrics()
        yield from self._memory_metrics()
        yield from self._training_metrics()
        yield from self._trouble_metrics()

    def _label(self, adapter_id: str) -> str:
        return self._server.base.id if adapter_id == BASE else adapter_id

    def _engine_metrics(self) -> Iterator[Metric]:
        stats, base_id = self._server.engine.stats(), self._server.base.id
        used = 1 - stats.kv_blocks_free / max(stats.kv_blocks_total, 1)
        gauges = (
            ("vllm:num_requests_running", stats.num_running, "Requests in the running batch."),
            ("vllm:num_requests_waiting", stats.num_waiting, "Requests waiting to be scheduled."),
            ("vllm:kv_cache_usage_perc", used, "Part of the KV cache in use, 0 to 1."),
        )
        for name, value, text in gauges:
            yield _gauge(name, value, text, base_id)
        running = [self._version_ids.get(key, key[:12]) for key in stats.pinned_adapters]
        info = GaugeMetricFamily(
            "vllm:lora_requests_info",
            "Adapters with running requests.",
            labels=["max_lora", "running_lora_adapters", "waiting_lora_adapters"],
        )
        most = str(self._server.settings.max_resident_adapters)
        info.add_metric([most, ",".join(sorted(running)), ""], self._server.lifecycle.started_at)
        yield info

    def _memory_metrics(self) -> Iterator[Metric]:
        base_id = self._server.base.id
        memory = self._server.memory
        rss, peak = memory.rss_bytes(), memory.rss_peak_bytes()
        yield _gauge("loraloop:rss_bytes", rss, "Resident memory of the server.", base_id)
        yield _gauge("loraloop:rss_peak_bytes", peak, "Its peak since start or reset.", base_id)

    def _trouble_metrics(self) -> Iterator[Metric]:
        gauge = GaugeMetricFamily(
            "loraloop:storage_trouble",
            "1 while this part cannot be read or written; answers go on.",
            labels=["model_name", "part"],
        )
        for part, trouble in self._server.troubles.items():
            gauge.add_metric([self._server.base.id, part], float(trouble.reason is not None))
        yield gauge

    def _training_metrics(self) -> Iterator[Metric]:
        base_id, now = self._server.base.id, self._server.jobs.report()
        yield _gauge("loraloop:training_jobs_running", now["running"], "Jobs that train.", base_id)
        text = "1 while training stands still for the chats."
        yield _gauge("loraloop:training_is_paused", now["is_paused"], text, base_id)
        counters = (
            ("loraloop:training_pauses", now["pauses"], "How often it has stood still."),
            ("loraloop:training_paused_seconds", now["paused_s"], "How long."),
        )
        for name, value, text in counters:
            counter = CounterMetricFamily(name, text, labels=["model_name"])
            counter.add_metric([base_id], value)
            yield counter


def _gauge(name: str, value: float, text: str, model_name: str) -> GaugeMetricFamily:
    gauge = GaugeMetricFamily(name, text, labels=["model_name"])
    gauge.add_metric([model_name], value)
    return gauge


def _histogram(
    name: str,
    attribute: str,
    bounds: tuple[float, ...],
    text: str,
    tallies: list[tuple[str, Tally]],
) -> HistogramMetricFamily:
    histogram = HistogramMetricFamily(name, text, labels=["model_name"])
    for label, tally in tallies:
        sketch = getattr(tally, attribute)
        counts = sketch.cumulative((*bounds, math.inf))
        names = [*(str(bound) for bound in bounds), "+Inf"]
        histogram.add_metric([label], list(zip(names, counts, strict=True)), sketch.total)
    return histogram
