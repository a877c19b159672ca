"""A YAML file of keys and values; a key given twice is a mistake."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from training.errors import InvalidConfig


def read_yaml(path: Path) -> dict[str, Any]:
    """The file's keys. Raises InvalidConfig for a file that cannot be read as such."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise InvalidConfig(f"cannot read the configuration {path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise InvalidConfig(f"{path} is not UTF-8 at byte offset {error.start}") from error
    return parse_yaml(text, str(path))


class _UniqueKeyLoader(yaml.SafeLoader):
    """YAML lets a later duplicate win silently; a duplicate is a mistake here."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        for key_node, _ in node.value:
            key = str(self.construct_object(key_node, deep=True))
            if key in seen:
                line = key_node.start_mark.line + 1
                raise InvalidConfig(f"key {key!r} appears twice (line {line})", param=key)
            seen.add(key)
        return super().construct_mapping(node, deep)


def parse_yaml(text: str, source: str) -> dict[str, Any]:
    try:
        settings = yaml.load(text, Loader=_UniqueKeyLoader)
    except yaml.YAMLError as error:
        raise InvalidConfig(f"{source} is not valid YAML: {error}") from error
    if settings is None:
        return {}
    if not isinstance(settings, dict):
        raise InvalidConfig(f"{source} holds a {type(settings).__name__}, expected keys and values")
    return settings
