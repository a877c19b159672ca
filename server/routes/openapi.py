"""What the OpenAPI document says about answers and errors. Documentation only."""

from __future__ import annotations

from typing import Any

_ERROR_SCHEMA = {
    "type": "object",
    "required": ["error"],
    "properties": {
        "error": {
            "type": "object",
            "required": ["message", "type", "param", "code"],
            "properties": {
                "message": {"type": "string"},
                "type": {"type": "string"},
                "param": {"type": ["string", "null"], "description": "the field at fault"},
                "code": {"type": ["string", "null"]},
            },
        }
    },
}


def error(description: str) -> dict[str, Any]:
    """An error answer in OpenAI's shape."""
    return {
        "description": description,
        "content": {"application/json": {"schema": _ERROR_SCHEMA}},
    }


ERRORS: dict[int | str, dict[str, Any]] = {
    400: error("Something in the request is wrong; `param` names the field."),
    401: error("No key, or an unknown one."),
    404: error("No such model."),
    408: error("The answer was not finished by its deadline."),
    413: error("The body is too large."),
    429: error("Too much is running; `Retry-After` says when to come back."),
    500: error("A failure of the server; `x-request-id` finds it in the log."),
    503: error("Starting or shutting down."),
}

_HEADERS = {
    "x-loraloop-adapter": "The adapter version that answered, or `base`.",
    "x-loraloop-experiment": "The experiment that chose it, if one did.",
    "x-loraloop-arm": "The arm of that experiment.",
    "x-request-id": "Finds the request in the server's log.",
}

ANSWERS: dict[int | str, dict[str, Any]] = {
    200: {
        "description": "The answer. With `stream: true` a chunk per step, then `[DONE]`.",
        "headers": {
            name: {"description": text, "schema": {"type": "string"}}
            for name, text in _HEADERS.items()
        },
        "content": {
            "application/json": {"schema": {"type": "object"}},
            "text/event-stream": {"schema": {"type": "string"}},
        },
    },
    **ERRORS,
}
