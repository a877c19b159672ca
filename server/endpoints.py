"""What to say of a URL that this server does not have. Knows no HTTP library.

OpenAI's clients know many more endpoints than a text model can have, and a base URL without its
``/v1``, or with two, is the commonest mistake of all.
"""

from __future__ import annotations

UNSUPPORTED = "unsupported_endpoint"
UNKNOWN = "unknown_url"
MAX_SHOWN = 200  # characters of a path

# The first part of the path behind /v1 → what it would be.
_OPENAI = {
    "assistants": "assistants",
    "threads": "assistants' threads",
    "vector_stores": "vector stores",
    "containers": "code containers",
    "conversations": "stored conversations",
    "evals": "evaluations",
    "batches": "batches",
    "uploads": "uploads in parts (send the file to /v1/files)",
    "moderations": "moderations",
    "images": "images",
    "videos": "videos",
    "audio": "speech and transcriptions",
    "realtime": "the realtime API",
    "rerank": "reranking",
    "score": "scores of pairs",
    "classify": "classification",
    "pooling": "pooling",
    "messages": "Anthropic's API",
    "organization": "an organisation's administration",
    "skills": "skills",
    "chatkit": "ChatKit",
}
_OURS = ("chat", "completions", "responses", "models", "embeddings", "files", "fine_tuning")


def describe_unknown(method: str, path: str) -> tuple[str, str]:
    """(message, code) for a URL that nothing answers."""
    path = path if len(path) <= MAX_SHOWN else path[:MAX_SHOWN] + "…"
    parts = [part for part in path.split("/") if part]
    behind = parts[1:] if parts[:1] == ["v1"] else parts
    if parts[:1] == ["v1"] and behind and behind[0] in _OPENAI:
        message = (
            f"This server has no {_OPENAI[behind[0]]} ({method} {path}): it serves a text model. "
            "It answers /v1/chat/completions, /v1/responses and /v1/completions; GET /openapi.json "
            "lists all there is."
        )
        return message, UNSUPPORTED
    message = f"Unknown request URL: {method} {path}."
    meant = "/v1/" + "/".join(part for part in parts if part != "v1")
    if meant != path and meant.split("/")[2] in _OURS:
        message += f" Did you mean {meant}?"
        if parts[:1] != ["v1"] or parts[:2] == ["v1", "v1"]:
            message += " A client's base URL ends in /v1, once."
    return message, UNKNOWN
