"""The report in words, for people: a few lines before a run, all of it for ``data check``."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from training.doctor.report import Findings, Report

_BAR = 40  # characters of the longest bar of a histogram


def summary_lines(totals: Mapping[str, Any]) -> list[str]:
    """A run's data in at most three lines; only what is there."""
    languages = ", ".join(f"{count} {name}" for name, count in totals["languages"].items())
    lines = [f"data: {totals['num_rows']} rows, {totals['num_tokens']:,} tokens ({languages})"]
    lost = {
        "bad": "bad",
        "duplicates": "duplicates",
        "near_duplicates": "near duplicates",
        "overlapping": "like rows for evaluation",
        "too_long": "too long",
        "truncated": "truncated",
    }
    if found := _counted(totals, lost):
        lines.append(f"of these: {found}")
    touched = {"with_personal_data": "with personal data", "cleaned": "cleaned or redacted"}
    if found := _counted(totals, touched):
        lines.append(f"rows {found}")
    return lines


def _counted(totals: Mapping[str, Any], names: Mapping[str, str]) -> str:
    return ", ".join(
        f"{totals[f'num_{key}']} {name}" for key, name in names.items() if totals[f"num_{key}"]
    )


def report_lines(report: Report) -> Iterator[str]:
    """Everything, in the order in which it is worth reading."""
    yield from _findings_lines("data", report.data)
    for name, found in report.others.items():
        yield ""
        yield from _findings_lines(name, found)
    yield ""
    yield from _likeness_lines(report)
    if report.parts:
        yield "parts: " + ", ".join(f"{rows} {name}" for name, rows in report.parts.items())
    yield ""
    yield "these data can be trained" if report.problem is None else "these data cannot be trained:"
    if report.problem is not None:
        yield report.problem


def _findings_lines(name: str, found: Findings) -> Iterator[str]:
    yield f"{name}: {found.num_rows} rows, {found.num_usable} usable and distinct"
    for file in found.files:
        encoding = "" if file["encoding"] in ("utf-8", "binary") else f", {file['encoding']}"
        yield f"  {file['name']}: {file['rows']} rows{encoding}"
    yield from (f"  note: {note}" for note in found.notes)
    yield from _bad_lines(found)
    for count, what in (
        (found.num_duplicates, "exact duplicates, removed"),
        (found.num_too_long, "left out: the reply starts after max_length"),
        (found.num_masked, "bad because nothing in them is to be learned (fully masked)"),
        (found.num_truncated, "truncated at max_length"),
        (found.num_windowed, "cut into windows of max_length"),
        (found.num_undesirable, "left out: labelled as undesirable replies"),
    ):
        if count:
            yield f"  {count} {what}"
    yield "  languages: " + ", ".join(f"{n} {name}" for name, n in found.languages.items() if n)
    yield from _token_lines(found.tokens)
    yield from _class_lines(found.classes)
    yield from _personal_lines(found.personal_data)
    yield from _cleaning_lines(found.cleaning)


def _bad_lines(found: Findings) -> Iterator[str]:
    if not found.num_bad:
        return
    yield f"  {found.num_bad} bad rows:"
    for reason, count in found.bad_rules.items():
        yield f"    {count} × {reason}"
    for row in found.bad_rows:
        yield f"    {row['file']}:{row['line']}: {row['reason']}"
    if found.num_bad > len(found.bad_rows):
        yield f"    … and {found.num_bad - len(found.bad_rows)} more"


def _token_lines(tokens: Mapping[str, Any]) -> Iterator[str]:
    if not tokens["histogram"]:
        return
    yield (
        f"  tokens: {tokens['total']:,}; of a row {tokens['min']} to {tokens['max']}, "
        f"median {tokens['median']}, 90 % up to {tokens['p90']}, 99 % up to {tokens['p99']}"
    )
    most = max(count for _, _, count in tokens["histogram"])
    for over, up_to, count in tokens["histogram"]:
        yield f"    {over + 1:>7}–{up_to:<7} {'█' * -(-count * _BAR // most)} {count}"


def _class_lines(classes: Mapping[str, Any] | None) -> Iterator[str]:
    if classes is None:
        return
    total = sum(classes["rows"].values())
    yield (
        f"  classes: {classes['num_classes']}, the largest with {classes['largest']} rows, "
        f"the smallest with {classes['smallest']}"
    )
    for label, count in classes["rows"].items():
        yield f"    {count:>7} ({count / total:.1%} of those shown) {label[:60]}"


def _personal_lines(personal: Mapping[str, Any]) -> Iterator[str]:
    if not personal["rows"]:
        return
    kinds = ", ".join(f"{count} {kind}" for kind, count in personal["kinds"].items())
    done = "replaced by placeholders" if personal["redacted"] else "not redacted"
    yield f"  personal data in {personal['rows']} rows ({kinds}), {done}"
    for place in personal["places"]:
        yield f"    {place['file']}:{place['line']}: {', '.join(place['kinds'])}"


def _cleaning_lines(cleaning: Mapping[str, Mapping[str, Any]]) -> Iterator[str]:
    for rule, done in cleaning.items():
        if rule == "any":
            continue
        yield f"  {rule}: {done['rows']} rows changed"
        if "before" in done:
            yield f"    {done['row']}: {done['before']!r} → {done['after']!r}"


def _likeness_lines(report: Report) -> Iterator[str]:
    near = report.near_duplicates
    what = {"remove": "removed", "report": "kept in one part", "off": "not looked for"}
    yield (
        f"near duplicates (Jaccard of 5-grams from {near['threshold']}): {near['rows']}, "
        f"{what[near['mode']]}"
    )
    yield from (f"  {pair['row']} is like {pair['like']}" for pair in near["pairs"])
    for name, overlap in report.overlap.items():
        yield (
            f"rows that also stand in {name}: {overlap['exact']} exactly, {overlap['near']} nearly"
        )
        yield from (f"  {pair['row']} is like {pair['like']}" for pair in overlap["pairs"])
