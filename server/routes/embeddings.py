"""POST /v1/embeddings: refused, with the reason. Clients that only look for models ask it too."""

from __future__ import annotations

from fastapi import APIRouter

from server.deps import Infer, ServerDep
from server.endpoints import UNSUPPORTED
from server.errors import ApiError
from server.routes.openapi import ERRORS

router = APIRouter(prefix="/v1", tags=["inference"])


@router.post(
    "/embeddings", summary="Refused: the base generates text", responses={400: ERRORS[400]}
)
async def create_embeddings(server: ServerDep, caller: Infer) -> None:
    """A causal language model has no embedding that its training made useful for search."""
    message = (
        f"{server.base.id} generates text and makes no embeddings; use a server with an embedding "
        "model for them. This one answers POST /v1/chat/completions, /v1/responses and "
        "/v1/completions."
    )
    raise ApiError(400, message, param="model", code=UNSUPPORTED)
