"""Results as files: JSON for programs, Markdown for people, every answer as a line, plots.

Nothing in them depends on when or where the suite ran: the same answers give the same bytes.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path

from artifacts.manifest import GateResult
from artifacts.results import Results, TaskResult
from artifacts.safe_write import write_bytes, write_json
from training.evaluate.answers import Answers
from training.evaluate.plots import draw
from training.evaluate.questions import CLEAN, PreparedSuite

RESULTS_FILE = "results.json"
REPORT_FILE = "report.md"
ANSWERS_FILE = "answers.jsonl"


def write_report(
    folder: Path,
    results: Results,
    gates: list[GateResult],
    suite: PreparedSuite,
    answers: Mapping[str, Answers],
) -> list[Path]:
    """Writes everything into ``folder``, over what an earlier run left. Returns the files."""
    folder.mkdir(parents=True, exist_ok=True)
    found = results.model_dump(mode="json") | {
        "forgetting": results.forgetting,
        "strict_gates": [gate.model_dump(mode="json") for gate in gates],
    }
    write_json(folder / RESULTS_FILE, found)
    lines = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in _lines(suite, answers))
    write_bytes(folder / ANSWERS_FILE, lines.encode("utf-8", "surrogatepass"))
    plots = draw(results, folder)
    write_bytes(folder / REPORT_FILE, markdown(results, gates, plots).encode())
    return [folder / name for name in (REPORT_FILE, RESULTS_FILE, ANSWERS_FILE)] + plots


def _lines(suite: PreparedSuite, answers: Mapping[str, Answers]) -> Iterator[dict[str, object]]:
    for task in suite.tasks:
        for place, reference in enumerate(task.references):
            said = {who: each.texts[task.name][CLEAN][place] for who, each in answers.items()}
            yield {
                "task": task.name,
                "question": task.questions[place],
                "reference": reference,
                **said,
            }


def markdown(results: Results, gates: list[GateResult], plots: list[Path]) -> str:
    """The report. Differences carry the 95 % interval of 1,000 paired resamples."""
    who = ", ".join(
        f"{subject} `{facts['id']}` (`{str(facts['hash'])[:12]}`)"
        for subject, facts in results.subjects.items()
    )
    parts = [
        f"# Suite {results.suite}",
        f"{who}; seed {results.seed}, suite `{results.suite_hash[:12]}`. Differences are the "
        "adapter's figure less the other's, with the 95 % interval of 1,000 paired resamples.",
    ]
    tasks = [*results.tasks, results.general] if results.general else list(results.tasks)
    for task in tasks:
        parts += _task(task)
    if results.forgetting is not None:
        parts.append(f"Perplexity on the general set changed by {results.forgetting:+.2%}.")
    if gates:
        parts += ["## Thresholds of the strict gate", gate_table(gates)]
    parts += [f"![{plot.stem}]({plot.name})" for plot in plots]
    return "\n\n".join(parts) + "\n"


def _task(task: TaskResult) -> list[str]:
    left_out = f", {task.num_left_out} left out as too long" if task.num_left_out else ""
    heading = f"## {task.name}: {task.kind}, {task.num_rows} rows{left_out}"
    subjects = list(task.figures)
    others = list(dict.fromkeys(each.to for each in task.differences))
    rows = [["figure", *subjects, *(f"adapter − {other}" for other in others)]]
    for metric in task.figures[subjects[0]]:
        row = [metric, *(f"{task.figures[who][metric]:.4f}" for who in subjects)]
        row += [
            f"{each.difference:+.4f} [{each.low:+.4f}, {each.high:+.4f}]"
            for each in task.differences
            if each.metric == metric
        ]
        rows.append(row)
    parts = [heading, _table(rows)]
    if task.robustness:
        parts += ["Under noise:", _table(_noise_rows(task))]
    return parts


def _noise_rows(task: TaskResult) -> list[list[str]]:
    rows = [["noise", "who", f"{task.main} clean", "noisy", "score", "questions changed"]]
    for who, noises in task.robustness.items():
        for kind, noise in noises.items():
            score = "says nothing" if noise.score is None else f"{noise.score:.1%}"
            changed = f"{noise.num_changed} of {noise.num_questions}"
            rows.append([kind, who, f"{noise.clean:.4f}", f"{noise.noisy:.4f}", score, changed])
    return rows


def gate_table(gates: list[GateResult] | tuple[GateResult, ...]) -> str:
    words = {True: "passed", False: "**failed**", None: "not measured"}
    rows = [["gate", "verdict", "value", "threshold", ""]]
    for gate in gates:
        figures = ["" if each is None else f"{each:.4g}" for each in (gate.value, gate.threshold)]
        rows.append([gate.name, words[gate.passed], *figures, gate.detail])
    return _table(rows)


def _table(rows: list[list[str]]) -> str:
    lines = [f"| {' | '.join(row)} |" for row in rows]
    return "\n".join([lines[0], "|" + "---|" * len(rows[0]), *lines[1:]])
