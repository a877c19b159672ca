"""What routes ask for, as annotations that make a signature a sentence."""

from __future__ import annotations

from typing import Annotated

from fastapi import Depends, Request

from server.auth import Caller, require_admin, require_infer
from server.state import Server


async def get_server(request: Request) -> Server:
    """The one Server that this app was created with. ``async``: else each call takes a thread."""
    server = request.app.state.server
    assert isinstance(server, Server)
    return server


ServerDep = Annotated[Server, Depends(get_server)]
Infer = Annotated[Caller, Depends(require_infer)]
Admin = Annotated[Caller, Depends(require_admin)]
