"""FastAPI's document made whole: keys, errors, answers, streams, examples.

FastAPI knows paths, parameters and bodies. What a route answers is not in its signature, since
answers are bytes that nobody reads again; it stands in tables here, and a test holds real answers
against them.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from server.auth import require_admin
from server.document import control_replies as control
from server.document import replies
from server.document.examples import examples_for
from server.middleware import guard_of
from server.routes.openapi import ERRORS, OPERATORS
from server.settings import Settings

Schema = dict[str, Any]
METHODS = ("get", "post", "put", "delete")
REF = "#/components/schemas/"
INFERENCE_KEY, ADMIN_KEY = "inferenceKey", "adminKey"

ABOUT = """\
OpenAI's API for one base model and many LoRA adapters, with vLLM's extensions.
What is not supported and would change an answer is refused with a 400 that names the field.
Every answer but 2xx has the shape of `Error`."""

TAGS = [
    {"name": "inference", "description": "Chats, texts and responses, by the base or an adapter."},
    {"name": "tokens", "description": "How the base reads and writes text."},
    {"name": "files", "description": "Training data."},
    {"name": "fine-tuning", "description": "Training jobs, beside the traffic."},
    {"name": "adapters", "description": "Versions: load, unload, aliases."},
    {"name": "experiments", "description": "Traffic split between versions, and feedback."},
    {"name": "operations", "description": "Health, speed, memory, audit."},
]

# Operation id → its answer in JSON.
ANSWERS: dict[str, type[BaseModel]] = {
    "create_chat_completion": replies.ChatCompletion,
    "create_completion": replies.TextCompletion,
    "create_response": replies.ResponseObject,
    "count_input_tokens": replies.InputTokens,
    "retrieve_response": replies.ResponseObject,
    "delete_response": replies.ResponseDeleted,
    "list_input_items": replies.ItemPage,
    "list_models": replies.ModelList,
    "retrieve_model": replies.Model,
    "create_file": control.File,
    "list_files": control.FileList,
    "retrieve_file": control.File,
    "delete_file": control.FileDeleted,
    "create_job": control.FineTuningJob,
    "list_jobs": control.FineTuningJobList,
    "retrieve_job": control.FineTuningJob,
    "list_events": control.JobEventList,
    "list_checkpoints": control.CheckpointList,
    "delete_checkpoint": control.CheckpointDeleted,
    "cancel_job": control.FineTuningJob,
    "pause_job": control.FineTuningJob,
    "resume_job": control.FineTuningJob,
    "list_adapters": control.AdapterList,
    "train_adapter": control.FineTuningJob,
    "load_adapter": control.Adapter,
    "unload_adapter": control.Adapter,
    "list_aliases": control.AliasList,
    "get_alias": control.Alias,
    "put_alias": control.Alias,
    "delete_alias": control.AliasDeleted,
    "put_experiment": control.Experiment,
    "get_experiment": control.Experiment,
    "delete_experiment": control.ExperimentDeleted,
    "list_experiments": control.ExperimentList,
    "give_feedback": control.Feedback,
    "audit_trail": control.AuditTrail,
    "stats": control.Stats,
    "reset": control.Peaks,
    "live": control.Live,
    "ready": control.Ready,
}
# Operation id → the data of one event, where the answer may be a stream.
EVENTS: dict[str, type[BaseModel]] = {
    "create_chat_completion": replies.ChatCompletionChunk,
    "create_completion": replies.TextCompletionChunk,
    "create_response": replies.ResponseEvent,
    "list_events": control.JobEvent,
}
OTHER_TYPES = {"file_content": "application/octet-stream", "metrics": "text/plain"}
REFUSED = ("create_embeddings", "cancel_response")  # routes that only say why not


def document(app: FastAPI, settings: Settings, base_id: str) -> Schema:
    """The whole document. Made once, on the first demand."""
    if app.openapi_schema is None:
        whole = get_openapi(
            title=app.title,
            version=app.version,
            summary="One base model, many LoRA adapters",
            description=ABOUT,
            routes=app.routes,
            tags=TAGS,
            license_info={"name": "Apache-2.0", "identifier": "Apache-2.0"},
        )
        schemas = whole["components"]["schemas"]
        for name in ("HTTPValidationError", "ValidationError"):
            schemas.pop(name, None)
        schemas.update(_reply_schemas())
        whole["components"]["securitySchemes"] = _schemes()
        examples = examples_for(base_id)
        for path, operation in operations(whole):
            _finish(path, operation, settings)
            if (bodies := examples.get(operation["operationId"])) is not None:
                shown = {name: {"value": body} for name, body in bodies.items()}
                operation["requestBody"]["content"]["application/json"]["examples"] = shown
        app.openapi_schema = whole
    return app.openapi_schema


def operations(whole: Schema) -> Iterator[tuple[str, Schema]]:
    """(path, operation) of each."""
    for path, by_method in whole["paths"].items():
        for method in METHODS:
            if method in by_method:
                yield path, by_method[method]


def _reply_schemas() -> Schema:
    models: set[type[BaseModel]] = {
        replies.Error,
        control.NotReady,
        *ANSWERS.values(),
        *EVENTS.values(),
    }
    ordered = sorted(models, key=lambda model: model.__name__)
    _, found = models_json_schema(
        [(model, "validation") for model in ordered], ref_template=REF + "{model}"
    )
    defined: Schema = found["$defs"]
    return defined


def _schemes() -> Schema:
    return {
        INFERENCE_KEY: {
            "type": "http",
            "scheme": "bearer",
            "description": "One of LORALOOP_API_KEYS; where none are set, none is needed.",
        },
        ADMIN_KEY: {
            "type": "http",
            "scheme": "bearer",
            "description": "One of LORALOOP_ADMIN_KEYS; it opens everything. Where none are set, "
            "programs on the server's own machine need none.",
        },
    }


def _finish(path: str, operation: Schema, settings: Settings) -> None:
    name = operation["operationId"]
    answers = operation["responses"]
    answers.pop("422", None)
    _say_who(path, operation, settings)
    has_body = "requestBody" in operation
    if guard_of(path) is not None:
        always = [400, 401, 500, 503]
        always += [404] if has_body or "parameters" in operation else []
        always += [408, 413] if has_body else []
        for status in always:
            answers.setdefault(str(status), ERRORS[status])
    success = next(code for code in answers if code.startswith("2"))
    if name in REFUSED:
        answers.pop(success)
    elif name in OTHER_TYPES:
        answers[success]["content"] = {OTHER_TYPES[name]: {"schema": {"type": "string"}}}
    elif name in ANSWERS:
        answers[success]["content"] = _contents(name)
    if name == "ready":
        schema = {"$ref": REF + control.NotReady.__name__}
        answers["503"]["content"] = {"application/json": {"schema": schema}}
    operation["responses"] = dict(sorted(answers.items()))


def _say_who(path: str, operation: Schema, settings: Settings) -> None:
    guard = guard_of(path)
    if guard is None:
        return
    is_admin = guard is require_admin
    keys: list[dict[str, list[str]]] = [{ADMIN_KEY: []}]
    if not is_admin:
        keys.insert(0, {INFERENCE_KEY: []})
    is_open = not (settings.admin_keys if is_admin else settings.api_keys)
    operation["security"] = [*keys, {}] if is_open else keys
    if is_admin:
        for status, answer in OPERATORS.items():
            operation["responses"].setdefault(str(status), answer)


def _contents(name: str) -> Schema:
    contents: Schema = {"application/json": {"schema": {"$ref": REF + ANSWERS[name].__name__}}}
    if name in EVENTS:
        event = EVENTS[name].__name__
        contents["text/event-stream"] = {
            "schema": {
                "type": "string",
                "description": f"Events `data: …`, each holding one `{event}`, or an `Error` after "
                "which nothing comes; the last one is `data: [DONE]`, but in a stream of "
                "`/v1/responses`.",
            },
        }
    return contents
