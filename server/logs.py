"""JSON logs on standard error: one line per event, one event per request; refused ones are told together (door.py).

A request's line holds its id, route template, status, time, sizes and collection. Keys, vectors, payloads, texts and
ids of records are never logged.
"""

from __future__ import annotations

import logging.config
import sys
from typing import Any, BinaryIO, cast

import msgspec
import structlog
from structlog.typing import FilteringBoundLogger

_LEVELS = {"debug": "INFO", "info": "WARNING", "warning": "WARNING", "error": "ERROR"}
_TIME = structlog.processors.TimeStamper(fmt="iso", utc=True)


def access_log(level: str, stream: BinaryIO | None = None) -> FilteringBoundLogger:
    """The log of requests, written straight to `stream` (standard error): about 10 µs a line."""
    logger = structlog.wrap_logger(
        structlog.BytesLogger(stream or sys.stderr.buffer),
        processors=[structlog.processors.add_log_level, _TIME, structlog.processors.JSONRenderer(_json)],
        wrapper_class=structlog.make_filtering_bound_logger(level),
        context_class=dict,
        cache_logger_on_first_use=True,
    ).bind(logger="nestvec.request")
    return cast(FilteringBoundLogger, logger)


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
