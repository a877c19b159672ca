"""The building blocks of request schemas: strict bodies, encodable text, neutral-only fields."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, TypeVar

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Discriminator,
    GetCoreSchemaHandler,
    GetJsonSchemaHandler,
    Tag,
    ValidationInfo,
    model_validator,
)
from pydantic_core import CoreSchema, PydanticCustomError, core_schema

from server.request_errors import nearest


def _encodable(text: str) -> str:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise PydanticCustomError(
            "invalid_unicode",
            "character {at} is half of a surrogate pair, which no text can hold",
            {"at": error.start},
        ) from None
    return text


Text = Annotated[str, AfterValidator(_encodable)]


class StrictBody(BaseModel):
    """No coercion, no NaN, no key that we do not know: such a key names the nearest known one."""

    model_config = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _refuse_unknown_keys(cls, value: Any) -> Any:
        if not isinstance(value, dict):
            return value
        known = [field.alias or name for name, field in cls.model_fields.items()]
        for key in value:
            if key not in known:
                raise _unknown(str(key), sorted(known))
        return value


def _unknown(key: str, known: list[str]) -> PydanticCustomError:
    near = nearest(key, known)
    shown = key.encode("utf-8", "replace").decode()[:100]
    hint = f" Did you mean {near}?" if near else ""
    context = {"param": shown, "hint": hint}
    return PydanticCustomError("unknown_parameter", "Unknown parameter: {param}.{hint}", context)


One = TypeVar("One")
Many = TypeVar("Many")

# A union whose complaint is about the shape that was sent; tags start with ~ and are never shown.
OneOrMany = Annotated[
    Annotated[One, Tag("~one")] | Annotated[Many, Tag("~many")],
    Discriminator(lambda value: "~many" if isinstance(value, list) else "~one"),
]


REFUSED = "x-refused"  # in a schema: why


@dataclass(frozen=True)
class Neutral:
    """A parameter that this server does not support: only values that change nothing pass."""

    values: tuple[Any, ...]  # besides null
    because: str

    def check(self, value: Any, info: ValidationInfo) -> Any:
        if any(value == v and type(value) is type(v) for v in (None, *self.values)):
            return value
        context = {"name": info.field_name or "this field", "because": self.because}
        message = "{name} is not supported by this server: {because}."
        raise PydanticCustomError("unsupported_parameter", message, context)

    def __get_pydantic_core_schema__(
        self, source: Any, handler: GetCoreSchemaHandler
    ) -> CoreSchema:
        return core_schema.with_info_after_validator_function(self.check, handler(source))

    def __get_pydantic_json_schema__(
        self, schema: CoreSchema, handler: GetJsonSchemaHandler
    ) -> dict[str, Any]:
        return {
            "enum": [*self.values, None],
            "description": f"Refused: {self.because}.",
            REFUSED: self.because,
        }


def neutral(*values: Any, because: str = "leave it out") -> Neutral:
    """Marks a field of which only ``values``, which change nothing, and null pass."""
    return Neutral(values, because)


def refuse(kind: str, message: str, param: str) -> PydanticCustomError:
    """A complaint of a whole-body check that names one field."""
    return PydanticCustomError(kind, "{message}", {"message": message, "param": param})
