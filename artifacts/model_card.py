"""The model card of an adapter version: Markdown behind Hugging Face's front matter.

Says what the registry knows of a version to people who find its folder without the registry. The
front matter follows https://huggingface.co/docs/hub/model-cards: what is not known is left out.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from typing import Any

import yaml

from artifacts.manifest import CARD_MARK, AdapterManifest, GateResult
from artifacts.results import Results, TaskResult

# The hub's names of licences; any other is "other" with a name of its own.
_LICENCES = re.compile(
    r"(apache|mit|cc|bsd|gpl|lgpl|agpl|mpl|odc|odbl|pddl|openrail|llama|gemma|unlicense|cdla|"
    r"afl|artistic|bsl|ecl|epl|eupl|gfdl|isc|ms-pl|ncsa|ofl|osl|postgresql|wtfpl|zlib)"
    r"[a-z0-9.-]*"
)
_LANGUAGES = {"zh": ("zh",), "en": ("en",), "mixed": ("zh", "en")}  # as the data report calls them
_MIN_LANGUAGE_SHARE = 0.05  # of the rows
_HUB_METRICS = {
    "perplexity": "perplexity",
    "bleu4": "bleu",
    "rouge_l": "rouge",
    "exact_match": "exact_match",
    "accuracy": "accuracy",
    "macro_f1": "f1",
}
_IN_DATA = {"data", "data_report"}  # settings that have a part of their own
_ELSEWHERE = {"license", "limits", "description"}


def model_card(manifest: AdapterManifest) -> str:
    """Front matter and text; the mark lets the registry write it anew."""
    settings = manifest.settings
    parts = [
        f"---\n{yaml.safe_dump(front_matter(manifest), allow_unicode=True, sort_keys=False)}---",
        CARD_MARK,
        f"# {manifest.id}",
        f"A LoRA adapter for `{manifest.base_id}`, {manifest.origin} on {manifest.created_at}.",
    ]
    if description := settings.get("description"):
        parts.append(_line(description))
    parts += ["## Identity", table(_identity(manifest))]
    if _IN_DATA & settings.keys():
        parts += ["## Data", *_data(settings)]
    if manifest.metrics:
        rows = [[key, _shown(value)] for key, value in manifest.metrics.items()]
        parts += ["## Held-out test part", table([["figure", "value"], *rows])]
    if manifest.evaluation is not None:
        parts += _evaluation(manifest.evaluation)
    if manifest.gates:
        parts += ["## Gates", _verdict(manifest), gate_table(manifest.gates)]
    rows = [
        [key, f"`{_line(value)}`"]
        for key, value in settings.items()
        if key not in _IN_DATA | _ELSEWHERE
    ]
    if rows:
        parts += ["## Settings", table([["key", "value"], *rows])]
    parts += ["## Licence", _line(settings.get("license") or "Nobody has stated one.")]
    parts += ["## Limits", *_limits(manifest)]
    return "\n\n".join(parts) + "\n"


def front_matter(manifest: AdapterManifest) -> dict[str, Any]:
    """What a hub reads."""
    found: dict[str, Any] = {
        "library_name": "peft",
        "base_model": manifest.base_id,
        "pipeline_tag": "text-generation",
        "tags": ["lora", "loraloop", f"base_model:adapter:{manifest.base_id}"],
    }
    if isinstance(licence := manifest.settings.get("license"), str) and licence.strip():
        named = licence.strip().lower()
        is_known = _LICENCES.fullmatch(named) is not None
        found |= {"license": named} if is_known else {"license": "other", "license_name": licence}
    if languages := _languages(manifest.settings.get("data_report")):
        found["language"] = languages
    figures = {"perplexity"} if "adapter_perplexity" in manifest.metrics else set()
    if manifest.evaluation is not None:
        figures |= {name for task in manifest.evaluation.tasks for name in _figure_names(task)}
    if metrics := [name for ours, name in _HUB_METRICS.items() if ours in figures]:
        found["metrics"] = metrics
    return found


def gate_table(gates: Sequence[GateResult]) -> str:
    """One row per gate."""
    words = {True: "passed", False: "**failed**", None: "not measured"}
    rows = [["gate", "verdict", "value", "threshold", ""]]
    for gate in gates:
        figures = ["" if each is None else f"{each:.4g}" for each in (gate.value, gate.threshold)]
        rows.append([gate.name, words[gate.passed], *figures, gate.detail])
    return table(rows)


def table(rows: Sequence[Sequence[str]]) -> str:
    """Markdown; the first row is the heading. A bar in a cell would end it."""
    lines = [f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in row)} |" for row in rows]
    return "\n".join([lines[0], "|" + "---|" * len(rows[0]), *lines[1:]])


def figure_table(task: TaskResult) -> str:
    """Each figure by subject, and the adapter's differences with their intervals."""
    subjects = list(task.figures)
    others = list(dict.fromkeys(each.to for each in task.differences))
    rows = [["figure", *subjects, *(f"adapter − {other}" for other in others)]]
    for metric in _figure_names(task):
        row = [metric, *(f"{task.figures[who][metric]:.4f}" for who in subjects)]
        row += [
            f"{each.difference:+.4f} [{each.low:+.4f}, {each.high:+.4f}]"
            for each in task.differences
            if each.metric == metric
        ]
        rows.append(row)
    return table(rows)


def noise_table(task: TaskResult) -> str:
    """Each perturbation of each subject."""
    rows = [["noise", "who", f"{task.main} clean", "noisy", "score", "questions changed"]]
    for who, noises in task.robustness.items():
        for kind, noise in noises.items():
            score = "says nothing" if noise.score is None else f"{noise.score:.1%}"
            changed = f"{noise.num_changed} of {noise.num_questions}"
            rows.append([kind, who, f"{noise.clean:.4f}", f"{noise.noisy:.4f}", score, changed])
    return table(rows)


def task_heading(task: TaskResult) -> str:
    left_out = f", {task.num_left_out} left out as too long" if task.num_left_out else ""
    return f"{task.name}: {task.kind}, {task.num_rows} rows{left_out}"


def _figure_names(task: TaskResult) -> list[str]:
    return list(next(iter(task.figures.values()), {}))


def _identity(manifest: AdapterManifest) -> list[list[str]]:
    size = f"{manifest.num_parameters:,} parameters, {manifest.num_bytes:,} bytes"
    return [
        ["what", "value"],
        ["content", f"`{manifest.content_hash}`"],
        ["base", f"`{manifest.base_id}`"],
        ["base fingerprint", f"`{manifest.base_fingerprint or 'unknown'}`"],
        ["chat template", f"`{manifest.template_hash or 'unknown'}`"],
        ["training rows", f"`{manifest.data_hash or 'unknown'}`"],
        ["size", f"rank {manifest.rank}, alpha {manifest.alpha:g}, {size}"],
        ["modules", ", ".join(manifest.target_modules)],
    ]


def _data(settings: dict[str, Any]) -> Iterator[str]:
    """Sources by name and hash, then what was found in their rows before training."""
    sources = settings.get("data")
    if isinstance(sources, list) and all(isinstance(each, dict) for each in sources):
        yield table([
            ["source", "SHA-256"],
            *([_line(each.get("file", "unknown")), f"`{each.get('sha256', 'unknown')}`"]
              for each in sources),
        ])  # fmt: skip
    report = settings.get("data_report")
    if isinstance(report, dict):
        rows = [[key.replace("_", " "), _line(value)] for key, value in report.items()]
        yield table([["found in the rows", "count"], *rows])


def _evaluation(results: Results) -> Iterator[str]:
    yield f"## Suite {results.suite}"
    yield (
        f"Suite `{results.suite_hash[:12]}`, seed {results.seed}. Differences carry the 95 % "
        "interval of 1,000 paired resamples."
    )
    for task in [*results.tasks, results.general] if results.general else results.tasks:
        yield f"### {task_heading(task)}"
        yield figure_table(task)
        if task.robustness:
            yield noise_table(task)
    if results.forgetting is not None:
        yield f"Perplexity on the general set changed by {results.forgetting:+.2%}."


def _verdict(manifest: AdapterManifest) -> str:
    if manifest.gate == "failed":
        return (
            f"**Failed.** It answers as `{manifest.id}` only; an alias or an arm of an experiment "
            "points to it where somebody forced it to."
        )
    return "Passed; what was not measured is not claimed."


def _limits(manifest: AdapterManifest) -> Iterator[str]:
    stated = manifest.settings.get("limits")
    yield _line(stated) if stated else "Nobody has stated what it is not meant for."
    if manifest.base_fingerprint is None:
        yield "Made elsewhere: that it was trained on this base is its owner's word."
    else:
        yield "It fits the base and the chat template above, and no other."
    if manifest.evaluation is None:
        yield "No suite of tasks was asked: how well it does any task is not known."
    unmeasured = [gate.name for gate in manifest.gates if gate.passed is None]
    if unmeasured:
        yield f"Not measured: {', '.join(unmeasured)}."


def _languages(report: Any) -> list[str]:
    """ISO 639-1 codes of those that make up a share of the rows."""
    found = report.get("languages") if isinstance(report, dict) else None
    if not isinstance(found, dict):
        return []
    counts = {name: n for name, n in found.items() if isinstance(n, int | float)}
    enough = _MIN_LANGUAGE_SHARE * sum(counts.values())
    named = (codes for name, codes in _LANGUAGES.items() if counts.get(name, 0) > enough)
    return list(dict.fromkeys(code for codes in named for code in codes))


def _line(value: Any) -> str:
    """A value on one line: what a table's cell or a paragraph can hold."""
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
    return " ".join(text.split())


def _shown(value: float | str | None) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
