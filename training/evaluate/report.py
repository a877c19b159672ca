"""Results as files: JSON for programs, Markdown for people, every answer as a line, plots.

Nothing in them depends on when or where the suite ran: the same answers give the same bytes.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path

from artifacts.manifest import GateResult
from artifacts.model_card import figure_table, gate_table, noise_table, task_heading
from artifacts.results import Results
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
    for task in [*results.tasks, results.general] if results.general else results.tasks:
        parts += [f"## {task_heading(task)}", figure_table(task)]
        if task.robustness:
            parts += ["Under noise:", noise_table(task)]
    if results.forgetting is not None:
        parts.append(f"Perplexity on the general set changed by {results.forgetting:+.2%}.")
    if gates:
        parts += ["## Thresholds of the strict gate", gate_table(gates)]
    parts += [f"![{plot.stem}]({plot.name})" for plot in plots]
    return "\n\n".join(parts) + "\n"
