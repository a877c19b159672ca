"""What the OpenAPI document says about answers and errors. Documentation only."""

from __future__ import annotations

from typing import Any

ERROR_REF = {"$ref": "#/components/schemas/Error"}  # server.document.replies


def error(description: str) -> dict[str, Any]:
    """An error answer in OpenAI's shape."""
    return {
        "description": description,
        "content": {"application/json": {"schema": ERROR_REF}},
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

# Of the operator's routes.
OPERATORS: dict[int | str, dict[str, Any]] = {
    403: error("This key, or a request from this place, may not."),
    507: error("No space, or a disk that takes no writes; nothing of the request was stored."),
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
