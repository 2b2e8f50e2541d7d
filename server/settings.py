"""Settings of the service: from the environment (NESTVEC_HOST, NESTVEC_API_KEY, ...) or from keyword arguments."""

from __future__ import annotations

import ipaddress
import os

from pydantic import Field, SecretStr, field_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from nestvec.errors import InvalidInput


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class Settings(BaseSettings):
    """What an operator may set; each field `x` is read from the environment variable NESTVEC_X."""

    model_config = SettingsConfigDict(env_prefix="NESTVEC_", frozen=True)

    host: str = Field(default="127.0.0.1", description="Address to bind; without an API key only loopback.")
    port: int = Field(default=8765, ge=0, le=65535, description="TCP port; 0 lets the system choose.")
    api_key: SecretStr | None = Field(default=None, description="Key every /v1 request must carry.")
    max_body_mb: int = Field(default=64, ge=1, le=1024, description="Largest request body, in MiB.")
    max_batch: int = Field(default=1000, ge=1, le=100_000, description="Most records, ids or queries per request.")
    threads: int = Field(default_factory=_cores, ge=1, le=1024, description="Engine calls running at the same time.")
    shutdown_seconds: int = Field(default=10, ge=0, le=3600, description="Time for requests to finish on SIGTERM.")

    @field_validator("api_key")
    @classmethod
    def _blank_means_none(cls, key: SecretStr | None) -> SecretStr | None:
        # `NESTVEC_API_KEY=` in a compose file means "not set", and must never mean "the empty key opens the door"
        return key if key is not None and key.get_secret_value().strip() else None

    @property
    def max_body_bytes(self) -> int:
        """The body bound in bytes."""
        return self.max_body_mb * 1024 * 1024


def is_loopback(host: str) -> bool:
    """Whether `host` can be reached from this machine only."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def check_bind(settings: Settings) -> None:
    """Refuse to serve strangers without a key (InvalidInput, one line)."""
    if settings.api_key is None and not is_loopback(settings.host):
        raise InvalidInput(
            f"refusing to bind to {settings.host} without an API key: "
            "set NESTVEC_API_KEY, or bind to a loopback address such as 127.0.0.1"
        )
