"""/v1/files: OpenAI's files API for training data."""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Annotated, Any

from fastapi import APIRouter, Query, Request
from fastapi.responses import FileResponse
from starlette.datastructures import FormData, UploadFile

from artifacts.errors import NotFound
from artifacts.storage import storage_errors
from server.audit import who
from server.deps import Admin, ServerDep
from server.errors import ApiError
from server.files import FileTooLarge, StoredFile
from server.paging import Order, Paging, list_json
from server.routes.openapi import ERRORS, error

router = APIRouter(prefix="/v1/files", tags=["files"])

MAX_FIELDS = 8
_UPLOAD_SCHEMA = {
    "requestBody": {
        "required": True,
        "content": {
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "required": ["file", "purpose"],
                    "properties": {
                        "file": {"type": "string", "format": "binary"},
                        "purpose": {"type": "string", "enum": ["fine-tune"]},
                    },
                }
            }
        },
    }
}
_NO_FILE: dict[int | str, dict[str, Any]] = {404: error("No such file.")}


@router.post(
    "",
    summary="Upload training data",
    responses={400: ERRORS[400], 413: ERRORS[413]},
    openapi_extra=_UPLOAD_SCHEMA,
)
async def create_file(request: Request, server: ServerDep, caller: Admin) -> dict[str, Any]:
    """A .jsonl or .json file in UTF-8, as multipart/form-data with ``purpose: fine-tune``."""
    async with _form(request) as form:
        file, purpose = form.get("file"), form.get("purpose")
        if not isinstance(file, UploadFile):
            raise _missing("file", "Send the file as multipart/form-data.")
        if not isinstance(purpose, str):
            raise _missing("purpose", "Use 'fine-tune'.")
        for field in form:
            if field not in ("file", "purpose"):
                message = f"Unknown parameter: {field}."
                raise ApiError(400, message, param=field, code="unknown_parameter")
        name = file.filename or ""
        try:
            stored = await asyncio.to_thread(server.files.add, file.file, name, purpose)
        except FileTooLarge as problem:
            raise ApiError(413, str(problem), param="file", code="file_too_large") from None
    facts = {"filename": stored.filename, "bytes": stored.num_bytes}
    await asyncio.to_thread(server.audit.record, who(caller), "file.create", stored.id, **facts)
    return file_json(stored)


@asynccontextmanager
async def _form(request: Request) -> AsyncIterator[FormData]:
    """A large part waits in the temporary folder until all of it is there."""
    with storage_errors(tempfile.gettempdir()):
        async with request.form(max_files=1, max_fields=MAX_FIELDS) as form:
            yield form


@router.get("", summary="List files")
def list_files(
    server: ServerDep,
    caller: Admin,
    after: str | None = None,
    limit: Annotated[int, Query(ge=1, le=10_000)] = 10_000,
    order: Order = "desc",
    purpose: str | None = None,
) -> dict[str, Any]:
    """Newest first, unless ``order=asc``."""
    page = server.files.page(Paging(after, limit, order), purpose)
    return list_json(page.map(file_json))


@router.get("/{file_id}", summary="Describe a file", responses=_NO_FILE)
def retrieve_file(file_id: str, server: ServerDep, caller: Admin) -> dict[str, Any]:
    return file_json(server.files.get(file_id))


@router.get("/{file_id}/content", summary="Download a file", responses=_NO_FILE)
def file_content(file_id: str, server: ServerDep, caller: Admin) -> FileResponse:
    """The very bytes that were uploaded."""
    stored = server.files.get(file_id)
    _check_exists(stored)
    return FileResponse(
        stored.path, media_type="application/octet-stream", filename=stored.filename
    )


@router.delete(
    "/{file_id}",
    summary="Delete a file",
    responses={**_NO_FILE, 409: error("An unfinished job uses it.")},
)
def delete_file(file_id: str, server: ServerDep, caller: Admin) -> dict[str, Any]:
    server.files.delete(file_id)
    server.audit.record(who(caller), "file.delete", file_id)
    return {"id": file_id, "object": "file", "deleted": True}


def file_json(file: StoredFile) -> dict[str, Any]:
    """A ``file``."""
    return {
        "id": file.id,
        "object": "file",
        "bytes": file.num_bytes,
        "created_at": int(file.created_at),
        "filename": file.filename,
        "purpose": file.purpose,
        "status": "processed",
        "status_details": None,
        "expires_at": None,
        "loraloop": {"sha256": file.sha256},
    }


def _check_exists(stored: StoredFile) -> None:
    if not stored.path.exists():
        raise NotFound(f"The bytes of file {stored.id} are gone: upload it again.")


def _missing(name: str, remedy: str) -> ApiError:
    message = f"Missing required parameter: {name}. {remedy}"
    return ApiError(400, message, param=name, code="missing_required_parameter")
