"""Settings of one server: LORALOOP_* environment and command line, read once, then frozen.

An unknown LORALOOP_* key or a bad value stops start-up and names the key, the value and the remedy.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationError, ValidationInfo, field_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from artifacts.errors import InvalidInput
from server.request_errors import nearest

PREFIX = "LORALOOP_"
_SECRET = {"api_keys", "admin_keys", "key_weights"}
MIB = 1024 * 1024
_ORIGIN = re.compile(r"[a-z][a-z0-9+.-]*://[^/\s,]+")
Weight = Annotated[float, Field(gt=0, le=1000, allow_inf_nan=False)]


class InvalidSettings(InvalidInput):
    """A setting that the server cannot start with."""


class Settings(BaseSettings):
    """One field per LORALOOP_<FIELD> variable; ``loraloop serve`` options override them."""

    model_config = SettingsConfigDict(env_prefix=PREFIX, extra="forbid", frozen=True)

    # Where and what
    home: Path | None = Field(
        None, description="registry, adapters, files, jobs; ./.loraloop if unset"
    )
    database_url: str | None = Field(
        None, description="SQLAlchemy URL; SQLite in the home if unset"
    )
    host: str = "127.0.0.1"
    port: int = Field(8000, ge=0, le=65535, description="0 takes any free port")
    model: str | None = Field(None, description="folder or hub id; the embedded base if unset")
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    kernels: Literal["auto", "amx", "torch"] = "auto"  # auto: amx where the CPU has it
    quantization: Literal["none", "nf4", "int8"] = "none"

    # Who
    api_keys: Annotated[tuple[str, ...], NoDecode] = Field((), repr=False)
    admin_keys: Annotated[tuple[str, ...], NoDecode] = Field((), repr=False)
    key_weights: Annotated[dict[str, Weight], NoDecode] = Field({}, repr=False)
    adapter_weights: Annotated[dict[str, Weight], NoDecode] = Field({})
    max_answers_per_key: int | None = Field(None, ge=1, description="running and waiting")
    allowed_origins: Annotated[tuple[str, ...], NoDecode] = Field(
        (), description="of web pages that may ask; * for all"
    )

    # Adapters
    adapter_root: Path | None = Field(
        None, description="folder that adapters may be loaded from, besides the home"
    )
    max_resident_adapters: int = Field(8, ge=1, le=1024, description="on the device at once")
    max_host_adapters: int = Field(64, ge=1, description="in memory at once, resident or not")
    max_adapter_bytes: int | None = Field(
        None, ge=1, description="memory for adapters; half of what is free at start if unset"
    )
    max_rank: int = Field(64, ge=1, le=1024)

    # Engine; None leaves the choice to it
    max_model_len: int | None = Field(None, ge=16, description="context; the base's own if unset")
    max_num_seqs: int = Field(32, ge=1, le=4096, description="answers generated at once")
    max_batched_tokens: int = Field(512, ge=16, description="tokens per step; bounds its time")
    kv_cache_tokens: int | None = Field(None, ge=64)
    max_queue: int = Field(256, ge=0, description="answers that wait; one more is a 429")
    max_queue_tokens: int = Field(
        131_072, ge=1, description="prompt tokens that wait to be read; more are a 429"
    )
    num_threads: int | None = Field(None, ge=1, le=1024, description="of the forward pass")

    # Requests
    max_n: int = Field(8, ge=1, le=128)
    max_body_bytes: int = Field(4 * MIB, ge=1024)
    max_upload_bytes: int = Field(512 * MIB, ge=1024)
    max_answers_kept: int = Field(200_000, ge=1, description="answers that feedback can score")
    max_responses_kept: int = Field(10_000, ge=1, description="stored ones of /v1/responses")
    max_request_s: float = Field(600.0, gt=0, description="receipt to last token, queue included")
    max_unread_tokens: int = Field(
        4096, ge=1, description="that a slow reader may leave; one more ends its answer"
    )
    stall_s: float = Field(30.0, gt=0, description="how long a reader may read nothing")
    grace_s: float = Field(
        30.0, ge=0, le=3600, description="how long running answers may take after SIGTERM"
    )

    # Training jobs
    training_threads: int = Field(1, ge=1, le=1024)
    training_niceness: int | Literal["idle"] = "idle"  # idle: what nobody else wants of the CPU
    training_memory_bytes: int | None = Field(
        None, ge=1, description="of one job; 90 % of what is free when it starts if unset"
    )
    training_ttft_target_ms: float | None = Field(
        None, gt=0, description="jobs pause while the P90 of first tokens is over it"
    )
    training_pause_after_s: float = Field(2.0, ge=0, le=3600, description="over it for so long")
    training_max_pause_s: float = Field(60.0, gt=0, le=86_400, description="then a slice")
    max_running_jobs: int = Field(1, ge=0, le=64)
    training_stop_grace_s: float = Field(20.0, ge=0, le=3600)
    resume_interrupted_jobs: bool = False

    @field_validator("allowed_origins")
    @classmethod
    def _know_origins(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for origin in value:
            if origin != "*" and not _ORIGIN.fullmatch(origin):
                raise ValueError("write origins as https://host or http://host:port, or *")
        return value

    @field_validator("api_keys", "admin_keys", "allowed_origins", mode="before")
    @classmethod
    def _split_keys(cls, value: Any) -> Any:
        if not isinstance(value, str):
            return value
        return tuple(key.strip() for key in value.split(",") if key.strip())

    @field_validator("training_niceness", mode="before")
    @classmethod
    def _know_niceness(cls, value: Any) -> Any:
        if str(value) not in ("idle", *map(str, range(20))):
            raise ValueError("write a number from 0 (like the server) to 19, or idle")
        return value

    @field_validator("key_weights", "adapter_weights", mode="before")
    @classmethod
    def _split_weights(cls, value: Any) -> Any:
        if not isinstance(value, str):
            return value
        pairs = [item.rpartition("=") for item in value.split(",") if item.strip()]
        if not all(name.strip() for name, _, _ in pairs):
            raise ValueError("write name=weight, separated by commas")
        return {name.strip(): weight.strip() for name, _, weight in pairs}

    @field_validator("key_weights")
    @classmethod
    def _know_keys(cls, value: dict[str, float], info: ValidationInfo) -> dict[str, float]:
        known = (*info.data.get("api_keys", ()), *info.data.get("admin_keys", ()))
        if not set(value) <= set(known):
            raise ValueError("it names a key that is neither in api_keys nor in admin_keys")
        return value


def read_settings(overrides: Mapping[str, Any] | None = None) -> Settings:
    """Settings from the environment; ``overrides`` (command-line options) that are not None win.

    Raises:
        InvalidSettings: an unknown LORALOOP_* key, or a value that does not fit.
    """
    _refuse_unknown_keys(os.environ)
    given = {k: v for k, v in (overrides or {}).items() if v is not None}
    try:
        return Settings(**given)
    except ValidationError as error:
        raise InvalidSettings(_explain(error, given)) from None


def _refuse_unknown_keys(environ: Mapping[str, str]) -> None:
    known = sorted(PREFIX + name.upper() for name in Settings.model_fields)
    for key in sorted(environ):
        if not key.upper().startswith(PREFIX) or key.upper() in known:
            continue
        near = nearest(key[len(PREFIX) :], [name[len(PREFIX) :].lower() for name in known])
        hint = f"did you mean {PREFIX}{near.upper()}?" if near else f"known: {', '.join(known)}"
        raise InvalidSettings(f"Unknown setting {key}={environ[key]!r} in the environment; {hint}")


def _explain(error: ValidationError, given: Mapping[str, Any]) -> str:
    problem = error.errors(include_url=False)[0]
    name = str(problem["loc"][0]).lower().removeprefix(PREFIX.lower())
    key = f"--{name.replace('_', '-')}" if name in given else PREFIX + name.upper()
    value = "(hidden)" if name in _SECRET else repr(problem["input"])
    field = Settings.model_fields.get(name)
    default = f" Leave it out for {field.default!r}." if field and name not in _SECRET else ""
    return f"Bad setting {key}={value}: {problem['msg']}.{default}"
