"""Settings of the service: from the environment (NESTVEC_HOST, NESTVEC_API_KEY, ...) or from keyword arguments."""

from __future__ import annotations

import ipaddress
from typing import Any, Literal

from pydantic import Field, SecretStr, field_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from nestvec.engine.cores import cores
from nestvec.engine.filters.tree import MAX_CONDITIONS
from nestvec.engine.monitor import DEFAULT_SHARE
from nestvec.engine.plan import MAX_K
from nestvec.errors import InvalidInput

LIMITS = (
    "max_body_mb", "max_upload_mb", "max_batch", "max_k", "max_filter", "max_in_flight", "max_in_flight_per_key",
    "max_in_flight_mb", "max_uploads", "request_seconds", "read_seconds", "keep_alive_seconds",
    "auth_failures_per_minute",
)  # fmt: skip
"""The settings that `/v1/info` publishes: what a client may run into."""


def _share_of_cores(given: dict[str, Any]) -> int:
    workers: int = given.get("workers", 1)
    return max(1, cores() // workers)


class Settings(BaseSettings):
    """What an operator may set; each field `x` is read from the environment variable NESTVEC_X."""

    model_config = SettingsConfigDict(env_prefix="NESTVEC_", frozen=True)

    host: str = Field(default="127.0.0.1", description="Address to bind; without an API key only loopback.")
    port: int = Field(default=8765, ge=0, le=65535, description="TCP port; 0 lets the system choose.")
    api_key: SecretStr | None = Field(default=None, description="A key of scope admin, beside those in the database.")
    workers: int = Field(default=1, ge=1, le=64, description="Processes that answer; more than one share mapped files.")
    threads: int = Field(
        default_factory=_share_of_cores, ge=1, le=1024, description="Engine calls running at once in each worker."
    )
    log_level: Literal["debug", "info", "warning", "error"] = Field(
        default="info", description="Least level of a log line; requests are logged at info."
    )
    trusted_proxies: str = Field(
        default="", description="Addresses, with commas, whose X-Forwarded-For is believed; * for any."
    )

    encoders: str = Field(
        default="", description="Encoders with a path or an address in their name that clients may use; with blanks."
    )

    recall_share: float = Field(
        default=DEFAULT_SHARE, ge=0, le=1, description="Share of searches answered exactly as well, for live recall."
    )
    recalibrate: bool = Field(
        default=False, description="Calibrate again, with recent queries, where live recall misses its target."
    )

    max_body_mb: int = Field(default=64, ge=1, le=1024, description="Largest request body, in MiB.")
    max_upload_mb: int = Field(default=65536, ge=1, le=1 << 24, description="Largest uploaded file, in MiB.")
    max_batch: int = Field(default=1000, ge=1, le=100_000, description="Most records, ids or queries per request.")
    max_k: int = Field(default=MAX_K, ge=1, le=MAX_K, description="Most hits of one query.")
    max_filter: int = Field(default=MAX_CONDITIONS, ge=1, le=MAX_CONDITIONS, description="Most conditions of a filter.")

    max_in_flight: int = Field(
        default=256, ge=1, le=100_000, description="Requests that a worker holds at once; one more gets a 503."
    )
    max_in_flight_per_key: int | None = Field(
        default=None, ge=1, le=100_000, description="The same for one API key, then 429; unset: no bound."
    )
    max_in_flight_mb: int = Field(
        default=256, ge=1, le=1 << 20, description="MiB of request bodies that a worker holds at once; then 503."
    )
    max_uploads: int = Field(
        default=1024, ge=1, le=1_000_000, description="Requests whose body is on its way, in one worker; then 503."
    )
    request_seconds: float = Field(
        default=60, gt=0, le=86400, description="Longest a request may take once its body is in, then 504."
    )
    read_seconds: float = Field(
        default=30, gt=0, le=86400, description="Time for a request's head, and for its body beside 64 KiB/s; then cut."
    )
    keep_alive_seconds: int = Field(default=75, ge=1, le=86400, description="How long an idle connection stays open.")
    drain_seconds: float = Field(
        default=0, ge=0, le=3600, description="On SIGTERM: how long /readyz says no before the socket closes."
    )
    shutdown_seconds: int = Field(default=10, ge=0, le=3600, description="Time for requests to finish on SIGTERM.")
    auth_failures_per_minute: int = Field(
        default=20, ge=0, le=100_000, description="Failed keys per address and minute before 429; 0 for no bound."
    )

    @field_validator("api_key")
    @classmethod
    def _blank_means_none(cls, key: SecretStr | None) -> SecretStr | None:
        # `NESTVEC_API_KEY=` in a compose file means "not set", and must never mean "the empty key opens the door"
        return key if key is not None and key.get_secret_value().strip() else None

    @property
    def max_body_bytes(self) -> int:
        """The body bound in bytes."""
        return self.max_body_mb * 1024 * 1024

    @property
    def max_upload_bytes(self) -> int:
        """The bound of an uploaded file in bytes."""
        return self.max_upload_mb * 1024 * 1024

    def limits(self) -> dict[str, int | float | None]:
        """The bounds that clients are told, by the names of their settings."""
        return {name: getattr(self, name) for name in LIMITS}


def is_loopback(host: str) -> bool:
    """Whether `host` can be reached from this machine only."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def check_bind(settings: Settings, *, stored_keys: bool = False) -> None:
    """Refuse to serve strangers without a key (InvalidInput, one line)."""
    if settings.api_key is None and not stored_keys and not is_loopback(settings.host):
        raise InvalidInput(
            f"refusing to bind to {settings.host} without an API key: "
            "set NESTVEC_API_KEY, or bind to a loopback address such as 127.0.0.1"
        )
