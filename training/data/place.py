"""Where the rows of a source lie and how they are read: from our own keys, or from an entry of
LLaMA-Factory's ``dataset_info.json``, which is read as it is.

Knows the names of files, and opens none but that one.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from artifacts.errors import InvalidData, InvalidInput
from training.data.forms.layout import Carrier, Layout, complete_layout, make_layout
from training.keys.data import DataSource

_ENTRY = re.compile(r"(?P<file>(?:.*/)?dataset_info\.json)(?::(?P<name>.*))?")
_HUB = "hub:"
_KNOWN = {
    *("file_name", "formatting", "ranking", "columns", "tags", "subset", "split", "folder"),
    *("num_samples", "hf_hub_url"),
}
_FORMATTINGS: dict[str, Carrier] = {
    "alpaca": "alpaca",
    "sharegpt": "sharegpt",
    "openai": "openai",
}
_REFUSED = {
    "ms_hub_url": "ModelScope is not reached from here; download the data and give file_name",
    "om_hub_url": "OpenMind is not reached from here; download the data and give file_name",
    "script_url": "loading scripts run foreign code; convert the data and give file_name",
    "cloud_file_name": "cloud storage is not reached from here; download it and give file_name",
}


@dataclass(frozen=True, slots=True)
class HubData:
    """A data set of the hub, or a part of it."""

    name: str
    subset: str | None
    split: str
    folder: str | None  # inside the data set


@dataclass(frozen=True, slots=True)
class Place:
    """One source, settled."""

    data: Path | HubData
    layout: Layout
    num_samples: int | None


def find_place(source: DataSource) -> Place:
    """Raises InvalidInput for keys that do not fit, InvalidData for a bad ``dataset_info.json``."""
    if entry := _ENTRY.fullmatch(source.path):
        return _from_entry(source, Path(entry["file"]), entry["name"])
    layout = make_layout(source.form, source.columns, source.tags)
    if source.path.startswith(_HUB):
        name = source.path.removeprefix(_HUB)
        return Place(HubData(name, source.subset, source.split, None), layout, source.num_samples)
    _refuse_parts_of_a_file(source.path, source.subset, source.split)
    return Place(Path(source.path), layout, source.num_samples)


def check_places(sources: Iterable[DataSource]) -> None:
    """What is wrong with a source before a row of it is read. Raises what ``find_place`` does, and
    InvalidData for a file that is not there."""
    for source in sources:
        data = find_place(source).data
        if isinstance(data, Path) and not data.exists():
            raise InvalidData(f"cannot read the data file {data}: there is no such file")


def _refuse_parts_of_a_file(path: str, subset: str | None, split: str) -> None:
    if subset is not None or split != "train":
        given = f"subset={subset!r}" if subset is not None else f"split={split!r}"
        raise InvalidInput(
            f"{path}: {given} chooses a part of a hub data set, and this is a file; name the file "
            "that holds the part, or take num_samples",
            param="data",
        )


# --- dataset_info.json ---


def _from_entry(source: DataSource, file: Path, name: str | None) -> Place:
    entries = _read_entries(file)
    if not name or name not in entries:
        what = f"has no entry {name!r}" if name else "holds several data sets; name one"
        known = ", ".join(entries) or "none"
        raise InvalidData(f"{file} {what}: write {file}:NAME; entries: {known}")
    entry = entries[name]
    place = f"{file}:{name}"
    _check_keys(source, entry, place)
    num_samples = source.num_samples or _num_samples(entry, place)
    layout = _layout_of(entry, place)
    if source.form == "text":  # their stage pt reads the prompts of any alpaca entry as text
        prompt = layout.columns.get("prompt", "instruction")
        layout = Layout("text", "supervised", {"prompt": prompt}, {})
    return Place(_data_of(entry, file, place), layout, num_samples)


def _read_entries(file: Path) -> dict[str, Any]:
    try:
        entries = json.loads(file.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise InvalidData(f"cannot read {file}: {error.strerror}") from error
    except ValueError as error:
        raise InvalidData(f"{file} is not valid JSON: {error}") from error
    if not isinstance(entries, dict) or not all(isinstance(e, dict) for e in entries.values()):
        raise InvalidData(f"{file} must hold an object with one object per data set")
    return entries


def _check_keys(source: DataSource, entry: dict[str, Any], place: str) -> None:
    given = {"columns", "tags", "form", "subset", "split"} & source.model_fields_set
    given -= {"form"} if source.form == "text" else set()
    if given:
        raise InvalidInput(
            f"{place}: {sorted(given)[0]} stands in dataset_info.json; leave it out here",
            param="data",
        )
    located = entry.keys() & {"file_name", "hf_hub_url"}
    for key in sorted(entry.keys() & _REFUSED.keys()):
        if not located:  # many entries name ModelScope beside the hub
            raise InvalidData(f"{place}: {key}: {_REFUSED[key]}")
    unknown = sorted(entry.keys() - _KNOWN - _REFUSED.keys())
    if unknown:
        raise InvalidData(
            f"{place}: unknown key {unknown[0]!r}; known: {', '.join(sorted(_KNOWN))}"
        )
    if not located:
        raise InvalidData(f"{place}: neither file_name nor hf_hub_url says where the rows are")


def _num_samples(entry: dict[str, Any], place: str) -> int | None:
    number = entry.get("num_samples")
    if number is not None and (type(number) is not int or number <= 0):
        raise InvalidData(f"{place}: num_samples={number!r} is not a positive number")
    return number


def _data_of(entry: dict[str, Any], file: Path, place: str) -> Path | HubData:
    """The hub wins, as in LLaMA-Factory."""
    subset, split = entry.get("subset"), entry.get("split") or "train"
    if "hf_hub_url" in entry:
        return HubData(str(entry["hf_hub_url"]), subset, split, entry.get("folder"))
    if entry.get("folder") is not None:
        raise InvalidData(f"{place}: folder belongs to a hub data set; put it into file_name")
    _refuse_parts_of_a_file(place, subset, split)
    return file.parent / str(entry["file_name"])


def _layout_of(entry: dict[str, Any], place: str) -> Layout:
    formatting = entry.get("formatting", "alpaca")
    if formatting not in _FORMATTINGS:
        raise InvalidData(f"{place}: formatting={formatting!r}; known: alpaca, sharegpt, openai")
    columns, tags = (_words(entry, key, place) for key in ("columns", "tags"))
    try:
        checked = make_layout("auto", columns, tags if formatting == "sharegpt" else {})
        goal = "preference" if entry.get("ranking") else checked.goal or "supervised"
        carrier = "text" if checked.carrier == "text" else _FORMATTINGS[formatting]
        return complete_layout(Layout(carrier, goal, columns, tags))
    except InvalidInput as error:
        raise InvalidData(f"{place}: {error}") from error


def _words(entry: dict[str, Any], key: str, place: str) -> dict[str, str]:
    given = entry.get(key) or {}
    if not isinstance(given, dict) or not all(isinstance(word, str) for word in given.values()):
        raise InvalidData(f"{place}: {key} must be an object of names")
    return given
