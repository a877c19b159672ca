"""Which JSON schemas an answer can be held to exactly; all others are refused by keyword and place.

llguidance reads the schema itself. It passes over keywords that it does not know, rounds large
numbers, follows references that never end, recurses until the stack is full, and counts remainders
in as many states as a divisor is large. What it would get wrong, or never finish, is found here,
without recursion and in time linear in the schema.
"""

from __future__ import annotations

import math
from collections import defaultdict, deque
from collections.abc import Callable, Iterable, Iterator
from copy import deepcopy
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any
from urllib.parse import quote, unquote

MAX_DEPTH = 64  # brackets inside one another; Rust's parsers stop at 128
MAX_NODES = 20_000  # schemas inside the schema
MAX_EXACT = 2**53  # integers above are rounded to doubles
MAX_LENGTH = 100_000  # of a string or an array
MAX_STEPS = 6_000  # from the root through all definitions, however they refer to each other
MAX_DIVISORS = 100_000  # all of multipleOf together: 2 s
MAX_PATTERN_NAMES = 64  # in patternProperties; each is compared with each
MAX_REGEX_BYTES = 4096  # a step may take 1 us for each two bytes, squared

ONE = ("items", "additionalItems", "additionalProperties")
SEVERAL = ("anyOf", "oneOf", "allOf", "prefixItems")
NAMED = ("properties", "patternProperties")
BOUNDS = ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf")
LENGTHS = ("minLength", "maxLength", "minItems", "maxItems", "minProperties", "maxProperties")
HONOURED = {*ONE, *SEVERAL, *NAMED, *BOUNDS, *LENGTHS}
HONOURED |= {"$ref", "type", "const", "enum", "required", "pattern", "format"}
# They describe and constrain nothing. Definitions are looked at where a $ref leads to them.
NOTES = {"$schema", "$anchor", "$comment", "$defs", "definitions", "title", "description"}
NOTES |= {"default", "example", "examples", "deprecated", "readOnly", "writeOnly", "discriminator"}
NOTES |= {"contentMediaType", "contentEncoding", "contentSchema"}
FORMATS = {"date-time", "time", "date", "duration", "email", "hostname", "ipv4", "ipv6", "uuid"}
FORMATS |= {"uri"}
PLAIN = "#/$~!&'()*+,;=:@"  # in a reference, besides letters and digits
# Written as they are in an answer's strings, or with an escape of their own.
SHORT_ESCAPES = "\b\t\n\f\r"

Path = tuple[str, ...]


class UnusableSchema(Exception):
    """The message says what cannot be held, and where."""


@dataclass(slots=True)
class _Node:
    """A schema inside the schema. It can end if each group has a member that can."""

    path: Path
    schema: dict[str, Any]
    groups: list[list[Path]] = field(default_factory=list)


def check_schema(schema: Any) -> Any:
    """``schema`` as llguidance reads it.

    Raises:
        UnusableSchema: answers cannot be held to it in every respect.
    """
    _check_depth(schema)
    nodes: dict[Path, _Node] = {}
    targets: set[Path] = {()}
    waiting: deque[Path] = deque([()])
    while waiting:
        path = waiting.popleft()
        if path in nodes:
            continue
        if len(nodes) >= MAX_NODES:
            raise UnusableSchema(f"It has more than {MAX_NODES} schemas inside.")
        node = _node(schema, path)
        nodes[path] = node
        if "$ref" in node.schema:
            targets.add(_target(path, node.schema["$ref"]))
        waiting.extend(child for group in node.groups for child in group)
        waiting.extend(path + child for child in _inner(node))
    _check_ends(nodes)
    _check_steps(nodes, targets)
    _check_work(nodes)
    return _with_plain_references(schema, nodes.values())


def _with_plain_references(schema: Any, nodes: Iterable[_Node]) -> Any:
    """References as RFC 3986 wants them: names of definitions may be in any script."""
    references = {node.path: node.schema["$ref"] for node in nodes if "$ref" in node.schema}
    plain = {path: quote(unquote(text), safe=PLAIN) for path, text in references.items()}
    if plain == references:
        return schema
    schema = deepcopy(schema)
    for path, text in plain.items():
        _at(schema, path)["$ref"] = text
    return schema


def _check_depth(schema: Any) -> None:
    level, depth = [schema], 0
    while level:
        depth += 1
        if depth > MAX_DEPTH:
            raise UnusableSchema(f"It is nested more than {MAX_DEPTH} deep.")
        level = [inner for value in level for inner in _values(value) if inner]


def _values(value: Any) -> Iterator[Any]:
    if isinstance(value, dict):
        yield from value.values()
    elif isinstance(value, list):
        yield from value


def _node(root: Any, path: Path) -> _Node:
    schema = _at(root, path)
    if isinstance(schema, bool):
        return _Node(path, {})
    if not isinstance(schema, dict):
        raise _unusable(path, "a schema is an object, true or false")
    for keyword, value in schema.items():
        _check_keyword(path, keyword, value)
    _check_interval(path, schema)
    _check_uniqueness(path, schema)
    return _Node(path, schema, list(_groups(path, schema)))


def _at(root: Any, path: Path) -> Any:
    value = root
    for step in path:
        try:
            value = value[int(step)] if isinstance(value, list) else value[step]
        except (KeyError, IndexError, TypeError, ValueError):
            raise _unusable(path, "$ref leads to this place, where there is nothing") from None
    return value


def _check_keyword(path: Path, keyword: str, value: Any) -> None:
    if keyword == "$id" and not path:
        return
    if keyword not in HONOURED:
        if keyword in NOTES or (keyword.startswith("x-") and keyword != "x-guidance"):
            return
        raise _unusable(path, f"the keyword {keyword!r} is not supported")
    if (check := _CHECKS.get(keyword)) is not None:
        check(path, keyword, value)


def _check_list(path: Path, keyword: str, value: Any) -> None:
    if not isinstance(value, list):
        raise _unusable(path, f"{keyword} is a list of schemas")


def _check_names(path: Path, keyword: str, value: Any) -> None:
    if not isinstance(value, dict):
        raise _unusable(path, f"{keyword} is an object of schemas")


def _check_required(path: Path, keyword: str, value: Any) -> None:
    if not (isinstance(value, list) and all(isinstance(one, str) for one in value)):
        raise _unusable(path, f"{keyword} is a list of names")


def _check_format(path: Path, keyword: str, value: Any) -> None:
    if value not in FORMATS:
        known = ", ".join(sorted(FORMATS))
        raise _unusable(path, f"the {keyword} {value!r} is not supported, only {known}")


def _check_numbers(path: Path, keyword: str, value: Any) -> None:
    is_large = isinstance(value, int) and abs(value) > MAX_EXACT
    if is_large or (isinstance(value, float) and not math.isfinite(value)):
        raise _unusable(path, f"{keyword} holds a number above 2^53, which is not exact")


def _check_bound(path: Path, keyword: str, value: Any) -> None:
    if not isinstance(value, int | float) or isinstance(value, bool):
        raise _unusable(path, f"{keyword} is a number")
    if keyword == "multipleOf" and value <= 0:
        raise _unusable(path, f"{keyword} is above 0")
    _check_numbers(path, keyword, value)


def _check_pattern(path: Path, keyword: str, value: Any) -> None:
    if not isinstance(value, str):
        raise _unusable(path, f"{keyword} is a regular expression")


def _check_constant(path: Path, keyword: str, value: Any) -> None:
    level = [value]
    while level:
        one = level.pop()
        _check_numbers(path, keyword, one)
        if isinstance(one, str) and any(_is_unwritable(char) for char in one):
            raise _unusable(path, f"{keyword} holds a control character")
        level.extend(_values(one))


def _is_unwritable(char: str) -> bool:
    return (char < " " and char not in SHORT_ESCAPES) or char == "\x7f"


def _check_length(path: Path, keyword: str, value: Any) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise _unusable(path, f"{keyword} is a whole number of 0 or more")
    if value > MAX_LENGTH:
        raise _unusable(path, f"{keyword} is {value}, the most is {MAX_LENGTH}")


def _check_interval(path: Path, schema: dict[str, Any]) -> None:
    """llguidance (1.9.1) lets 2 through for numbers above 2 and below 2.5."""
    low, high = schema.get("exclusiveMinimum"), schema.get("exclusiveMaximum")
    lowest = max([b for b in (low, schema.get("minimum")) if b is not None], default=-math.inf)
    highest = min([b for b in (high, schema.get("maximum")) if b is not None], default=math.inf)
    is_whole = any(b is not None and b == int(b) for b in (low, high))
    if is_whole and highest - lowest < 1 and schema.get("type") != "integer":
        what = "no exclusive bound that is a whole number can be held so near the other bound"
        raise _unusable(path, what)


def _check_uniqueness(path: Path, schema: dict[str, Any]) -> None:
    """Names that are not listed may come twice, so that they count once at most."""
    least = schema.get("minProperties", 0)
    required = schema.get("required", [])
    if least > len(set(required)) + 1:
        what = f"minProperties is {least}: only the names in required and one more can be ensured"
        raise _unusable(path, what)


def _groups(path: Path, schema: dict[str, Any]) -> Iterator[list[Path]]:
    """What has to end for an instance of ``schema`` to end: of each group, one."""
    if (reference := schema.get("$ref")) is not None:
        yield [_target(path, reference)]
    for index in range(len(schema.get("allOf", ()))):
        yield [(*path, "allOf", str(index))]
    for keyword in ("anyOf", "oneOf"):
        if options := schema.get(keyword):
            yield [(*path, keyword, str(index)) for index in range(len(options))]
    if "const" in schema or "enum" in schema:
        return
    if schema.get("type") == "object":
        yield from _object_groups(path, schema)
    elif schema.get("type") == "array":
        yield from _array_groups(path, schema)


def _object_groups(path: Path, schema: dict[str, Any]) -> Iterator[list[Path]]:
    properties = schema.get("properties", {})
    others = [(*path, "additionalProperties")] if "additionalProperties" in schema else []
    for name in schema.get("required", []):
        if name in properties:
            yield [(*path, "properties", name)]
        elif others and "patternProperties" not in schema:
            yield others
    if schema.get("minProperties", 0) and others:
        listed = [(*path, "properties", name) for name in properties]
        matched = [(*path, "patternProperties", name) for name in schema.get(NAMED[1], {})]
        yield listed + matched + others


def _array_groups(path: Path, schema: dict[str, Any]) -> Iterator[list[Path]]:
    least = schema.get("minItems", 0)
    first = schema.get("prefixItems", [])
    for index in range(min(least, len(first))):
        yield [(*path, "prefixItems", str(index))]
    if least > len(first) and isinstance(schema.get("items"), dict):
        yield [(*path, "items")]


def _inner(node: _Node) -> Iterator[Path]:
    """The places of the schemas directly inside one."""
    for keyword in ONE:
        if (value := node.schema.get(keyword)) is not None:
            if isinstance(value, list):
                yield from ((keyword, str(index)) for index in range(len(value)))
            else:
                yield (keyword,)
    for keyword in SEVERAL:
        yield from ((keyword, str(index)) for index in range(len(node.schema.get(keyword, ()))))
    for keyword in NAMED:
        yield from ((keyword, name) for name in node.schema.get(keyword, ()))


def _check_reference(path: Path, keyword: str, value: Any) -> None:
    _target(path, value)


def _target(path: Path, reference: Any) -> Path:
    if reference == "#":
        return ()
    if not isinstance(reference, str) or not reference.startswith("#/"):
        raise _unusable(path, f"$ref {reference!r} does not lead to a place in this schema (#/…)")
    steps = unquote(reference[2:]).split("/")
    return tuple(step.replace("~1", "/").replace("~0", "~") for step in steps)


def _check_ends(nodes: dict[Path, _Node]) -> None:
    """Dowling and Gallier's linear propagation of Horn clauses (1984), from what ends by itself."""
    wanted_by: dict[Path, list[tuple[Path, int]]] = defaultdict(list)
    open_groups = {path: set(range(len(node.groups))) for path, node in nodes.items()}
    for path, node in nodes.items():
        for index, group in enumerate(node.groups):
            for child in group:
                wanted_by[child].append((path, index))
    ready = deque(path for path, groups in open_groups.items() if not groups)
    ends = set(ready)
    while ready:
        for parent, index in wanted_by[ready.popleft()]:
            open_groups[parent].discard(index)
            if not open_groups[parent] and parent not in ends:
                ends.add(parent)
                ready.append(parent)
    for path in nodes:
        if path not in ends:
            raise _unusable(path, "no answer could ever end: each would hold another one")


def _check_steps(nodes: Iterable[Path], targets: set[Path]) -> None:
    """Definitions may lead through all others, one inside the other on the compiler's stack."""
    longest = dict.fromkeys(targets, 1)
    for path in nodes:
        for length in range(len(path) + 1):
            if (target := path[:length]) in longest:
                longest[target] = max(longest[target], 1 + len(path) - length)
    if sum(longest.values()) > MAX_STEPS:
        raise UnusableSchema(f"Its {len(targets) - 1} definitions are too many, or too deep.")


def _check_work(nodes: dict[Path, _Node]) -> None:
    """What takes time that no limit of llguidance's counts."""
    divisors: list[int] = []
    squares = num_names = 0
    for node in nodes.values():
        names = node.schema.get("patternProperties", {})
        num_names += len(names)
        pattern = node.schema.get("pattern", "")
        squares += sum(len(regex.encode()) ** 2 for regex in (pattern, *names))
        if "multipleOf" in node.schema:
            divisors.append(_coefficient(node.schema["multipleOf"]))
    if squares > MAX_REGEX_BYTES**2:
        raise UnusableSchema(f"Its patterns are too long; one may have {MAX_REGEX_BYTES} bytes.")
    if num_names > MAX_PATTERN_NAMES:
        raise UnusableSchema(f"It has more than {MAX_PATTERN_NAMES} names in patternProperties.")
    # Of schemas that hold together, llguidance takes the least common multiple.
    if max(sum(divisors), math.lcm(*set(divisors))) > MAX_DIVISORS:
        raise UnusableSchema("Its values of multipleOf are too large, or too many.")


def _coefficient(divisor: float) -> int:
    """The divisor's digits as a whole number: shifting the point costs nothing."""
    digits = Decimal(str(divisor)).normalize().as_tuple().digits
    return int("".join(map(str, digits)))


def _unusable(path: Path, what: str) -> UnusableSchema:
    steps = (step.replace("~", "~0").replace("/", "~1") for step in path)
    place = "/".join(("#", *steps))
    shown = place if len(place) <= 200 else place[:200] + "…"
    return UnusableSchema(f"At {shown}: {what}.")


_CHECKS: dict[str, Callable[[Path, str, Any], None]] = {
    **dict.fromkeys(SEVERAL, _check_list),
    **dict.fromkeys(NAMED, _check_names),
    **dict.fromkeys(BOUNDS, _check_bound),
    **dict.fromkeys(LENGTHS, _check_length),
    **dict.fromkeys(("const", "enum"), _check_constant),
    "pattern": _check_pattern,
    "format": _check_format,
    "required": _check_required,
    "$ref": _check_reference,
}
