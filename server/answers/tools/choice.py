"""Which functions an answer may call, and whether it must: from a body's fields."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from server.errors import ApiError
from server.schemas.tools import AllowedToolsChoice, NamedTool, Tool, ToolChoice


@dataclass(frozen=True, slots=True)
class Offer:
    """The functions that one answer may call, each with its place in the request."""

    callable: tuple[tuple[int, Tool], ...]  # none: the answer is no call
    must_call: bool = False
    is_named: bool = False  # the client chose the function
    is_parallel: bool = True  # more than one call in an answer

    @property
    def names(self) -> frozenset[str]:
        return frozenset(tool.function.name for _, tool in self.callable)


def offer(
    tools: Sequence[Tool] | None, choice: ToolChoice | None, parallel: bool | None
) -> Offer | None:
    """None without tools. Raises ApiError that names the field at fault."""
    if not tools:
        if choice not in (None, "none"):
            message = "tool_choice needs tools: send the functions, or leave it out."
            raise ApiError(400, message, param="tool_choice", code="invalid_combination")
        return None
    places = _places(tools)
    every = tuple(enumerate(tools))
    is_parallel = parallel is not False
    match choice:
        case "none":
            return Offer(())
        case "required":
            return Offer(every, True, is_parallel=is_parallel)
        case NamedTool(function=named):
            at = _place(places, named.name, "tool_choice.function.name")
            return Offer((every[at],), True, is_named=True, is_parallel=False)
        case AllowedToolsChoice(allowed_tools=allowed):
            place = "tool_choice.allowed_tools.tools[{}].function.name"
            chosen = {
                _place(places, tool.function.name, place.format(i))
                for i, tool in enumerate(allowed.tools)
            }
            some = tuple(every[at] for at in sorted(chosen))
            return Offer(some, allowed.mode == "required", is_parallel=is_parallel)
    return Offer(every, is_parallel=is_parallel)


def _places(tools: Sequence[Tool]) -> dict[str, int]:
    places: dict[str, int] = {}
    for index, tool in enumerate(tools):
        name = tool.function.name
        if places.setdefault(name, index) != index:
            message = f"tools[{places[name]}] and tools[{index}] are both named {name!r}."
            param = f"tools[{index}].function.name"
            raise ApiError(400, message, param=param, code="invalid_value")
    return places


def _place(places: dict[str, int], name: str, param: str) -> int:
    if name not in places:
        message = f"{param} is {name!r}, which is none of tools: {', '.join(places)}."
        raise ApiError(400, message[:1000], param=param, code="invalid_value")
    return places[name]
