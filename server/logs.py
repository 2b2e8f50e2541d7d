"""JSON logs on standard error: one line per event, one event per request; refused ones are told together (door.py).

A request's line holds its id, route template, status, time, sizes and collection. Keys, vectors, payloads, texts and
ids of records are never logged.
"""

from __future__ import annotations

import logging.config
import sys
from collections.abc import Iterable
from datetime import UTC, datetime
from typing import Any, BinaryIO

import msgspec
import structlog

_LEVELS = {"debug": "INFO", "info": "WARNING", "warning": "WARNING", "error": "ERROR"}
_TIME = structlog.processors.TimeStamper(fmt="iso", utc=True)


class Line(msgspec.Struct, omit_defaults=True, gc=False):
    """What the log says of one request; `route` is the template of its path."""

    request_id: str
    method: str
    route: str
    status: int
    ms: float
    bytes_in: int
    bytes_out: int
    collection: str = ""


class RequestLog:
    """The log of requests, written straight to `stream` (standard error): a line costs a microsecond or two."""

    def __init__(self, level: str, stream: BinaryIO | None = None) -> None:
        self._stream = stream or sys.stderr.buffer
        self._least = logging.getLevelNamesMapping()[level.upper()]

    def note(self, lines: Iterable[Line]) -> None:
        """A line each, at one time; those of failed requests are warnings."""
        chosen = [line for line in lines if (logging.WARNING if line.status >= 500 else logging.INFO) >= self._least]
        if chosen:
            now, encode = _now(), _LINES.encode
            starts = [_start("request", "warning" if line.status >= 500 else "info", now) for line in chosen]
            self._write(
                b"".join([start + encode(line)[1:] + b"\n" for start, line in zip(starts, chosen, strict=True)])
            )

    def refused(self, requests: int) -> None:
        """One line for this many that were refused before anything was known of them."""
        if self._least <= logging.WARNING:
            self._write(_start("refused", "warning", _now()) + b'"status":503,"requests":%d}\n' % requests)

    def _write(self, lines: bytes) -> None:
        self._stream.write(lines)
        self._stream.flush()


_LINES = msgspec.json.Encoder()


def _now() -> str:
    return datetime.now(UTC).isoformat().replace("+00:00", "Z")


def _start(event: str, level: str, now: str) -> bytes:
    """How a line begins: with what structlog adds to every other one."""
    return f'{{"logger":"nestvec.request","event":"{event}","level":"{level}","timestamp":"{now}",'.encode()


def configure(level: str) -> None:
    """Let everything that nestvec and uvicorn log through Python's logging go to standard error in the same form."""
    logging.config.dictConfig(
        {
            "version": 1,
            "disable_existing_loggers": False,
            "formatters": {"json": {"()": _formatter}},
            "handlers": {"stderr": {"class": "logging.StreamHandler", "formatter": "json"}},
            "loggers": {
                "nestvec": {"handlers": ["stderr"], "level": level.upper(), "propagate": False},
                # its "info" tells the steps of start and end, which nestvec tells in one line
                "uvicorn": {"handlers": ["stderr"], "level": _LEVELS[level], "propagate": False},
            },
        }
    )


def _formatter() -> logging.Formatter:
    before: list[Any] = [structlog.stdlib.add_log_level, structlog.stdlib.add_logger_name, _TIME]
    return structlog.stdlib.ProcessorFormatter(
        foreign_pre_chain=before,
        processors=[
            structlog.stdlib.ProcessorFormatter.remove_processors_meta,
            structlog.processors.format_exc_info,
            structlog.processors.JSONRenderer(lambda event, **_: _json(event).decode()),
        ],
    )


def _json(event: object, **_: Any) -> bytes:  # noqa: ANN401 - structlog hands options of json.dumps over
    return msgspec.json.encode(event, enc_hook=repr)
