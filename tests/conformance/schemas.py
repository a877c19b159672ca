"""Random JSON schemas, each of which some answer fits. Equal seeds make equal schemas."""

from __future__ import annotations

import random
import string
from collections.abc import Callable
from typing import Any

Schema = dict[str, Any]

NAMES = (
    "name",
    "id",
    "größe",
    "价格",
    "订单号",
    "is_gift",
    "a b",
    'q"uote',
    "sl/ash",
    "🦊",
    "emoji🎉",
    "",
)
WORDS = (
    "",
    "red",
    "très",
    "茉莉花茶",
    "a\nb",
    'say "so"',
    "back\\slash",
    "/",
    "🫖 tea",
    "null",
    "0",
)
PATTERNS = (
    "^[A-Z]{2}-[0-9]{4}$",
    "^(yes|no|vielleicht)$",
    "[0-9]",
    "^#[0-9a-f]{6}$",
    "^[一-龥]{1,4}$",
    r"^\d{3}(-\d{2})?$",
    "^.{2,5}$",
    "^a|b$",
)
FORMATS = (
    "date",
    "time",
    "date-time",
    "uuid",
    "ipv4",
    "ipv6",
    "email",
    "hostname",
    "duration",
    "uri",
)
MOST = 4  # levels


class Maker:
    """Makes one schema. Definitions are shared by all of it, and may hold themselves."""

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)
        self._defs: dict[str, Schema] = {}

    def schema(self) -> Schema:
        made = self._any(0)
        if self._defs:
            made = {"$defs": self._defs, **made}
        return made

    def _any(self, level: int) -> Schema:
        simple: list[Callable[[int], Schema]] = [
            self._string,
            self._integer,
            self._number,
            self._constant,
            lambda _: {"type": "boolean"},
            lambda _: {"type": "null"},
            lambda _: {"type": self._random.sample(["string", "integer", "null", "boolean"], 2)},
        ]
        nested: list[Callable[[int], Schema]] = [
            self._object,
            self._object,
            self._array,
            self._options,
            self._definition,
            self._tree,
        ]
        is_deep = level >= MOST or self._random.random() < 0.15 * level
        make = self._random.choice(simple if is_deep else [*simple, *nested, *nested])
        return make(level + 1)

    def _object(self, level: int) -> Schema:
        names = self._random.sample(NAMES, self._random.randrange(5))
        made: Schema = {
            "type": "object",
            "properties": {name: self._any(level) for name in names},
            "required": [name for name in names if self._random.random() < 0.7],
        }
        match self._random.randrange(6):
            case 0:
                made["additionalProperties"] = self._any(level)
            case 1:
                made["patternProperties"] = {"^x_[a-z]{1,3}$": self._any(level)}
                made["additionalProperties"] = False
            case 2:
                pass  # any others
            case _:
                made["additionalProperties"] = False
        return made

    def _array(self, level: int) -> Schema:
        made: Schema = {"type": "array"}
        least = self._random.randrange(3)
        if self._random.random() < 0.3:
            made["prefixItems"] = [self._any(level) for _ in range(self._random.randrange(1, 3))]
        if self._random.random() < 0.8:
            made["items"] = self._any(level)
        if self._random.random() < 0.5:
            made |= {"minItems": least, "maxItems": least + self._random.randrange(3)}
        return made

    def _options(self, level: int) -> Schema:
        options = [self._any(level) for _ in range(self._random.randrange(2, 4))]
        return {"anyOf": options}

    def _definition(self, level: int) -> Schema:
        if not self._defs or self._random.random() < 0.5:
            name = f"d{len(self._defs)}"
            self._defs[name] = {}  # taken
            self._defs[name] = self._any(level)
        else:
            # One that is whole, so that none holds nothing but itself.
            whole = [name for name, made in self._defs.items() if made]
            name = self._random.choice(whole) if whole else ""
        return {"$ref": f"#/$defs/{name}"} if name else {"type": "null"}

    def _tree(self, level: int) -> Schema:
        name = f"树{len(self._defs)}"
        me = {"$ref": f"#/$defs/{name}"}
        self._defs[name] = {}  # taken
        value = self._any(level)
        children = {"type": "array", "items": me, "maxItems": 2}
        below = self._random.choice([{"anyOf": [me, {"type": "null"}]}, children])
        self._defs[name] = {
            "type": "object",
            "properties": {"value": value, "below": below},
            "required": ["value", "below"],
            "additionalProperties": False,
        }
        return me

    def _string(self, _: int) -> Schema:
        made: Schema = {"type": "string"}
        match self._random.randrange(5):
            case 0:
                made["pattern"] = self._random.choice(PATTERNS)
            case 1:
                made["format"] = self._random.choice(FORMATS)
            case 2:
                made["minLength"] = self._random.randrange(6)
                made["maxLength"] = made["minLength"] + self._random.randrange(6)
            case 3:
                made["enum"] = self._random.sample(WORDS, self._random.randrange(1, 5))
            case _:
                made["title"] = "".join(self._random.choices(string.printable, k=8))
        return made

    def _integer(self, _: int) -> Schema:
        made: Schema = {"type": "integer"}
        low = self._random.randrange(-1000, 1000)
        if self._random.random() < 0.6:
            made[self._random.choice(["minimum", "exclusiveMinimum"])] = low
        if self._random.random() < 0.6:
            made[self._random.choice(["maximum", "exclusiveMaximum"])] = low + 50
        if self._random.random() < 0.3:
            made["multipleOf"] = self._random.choice([2, 5, 7, 10])
        return made

    def _number(self, _: int) -> Schema:
        made: Schema = {"type": "number"}
        low = round(self._random.uniform(-100, 100), self._random.randrange(4))
        if self._random.random() < 0.6:
            made[self._random.choice(["minimum", "exclusiveMinimum"])] = low
        if self._random.random() < 0.6:
            made[self._random.choice(["maximum", "exclusiveMaximum"])] = low + 1.5
        elif self._random.random() < 0.2:
            made["multipleOf"] = self._random.choice([0.5, 0.25])  # which doubles hold
        return made

    def _constant(self, _: int) -> Schema:
        values = [*WORDS, 0, -7, 3.25, True, None, {"a": [1, {"键": "值"}]}, [], ["x", 2]]
        if self._random.random() < 0.5:
            return {"const": self._random.choice(values)}
        return {"enum": self._random.sample(values, self._random.randrange(1, 6))}
