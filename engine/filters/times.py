"""ISO 8601 dates and datetimes as microseconds since 1970, UTC."""

from __future__ import annotations

import re
from datetime import datetime, timedelta

NO_TIME = -(1 << 63)

_ISO = re.compile(r"\d{4}-\d\d-\d\d([Tt ]\d\d:\d\d(:\d\d([.,]\d+)?)?([Zz]|[+-]\d\d(:?\d\d)?)?)?", re.ASCII)
_EPOCH = datetime(1970, 1, 1).toordinal()
_SECOND = 1_000_000


def micros(text: str) -> int:
    """Microseconds since 1970-01-01T00:00Z of a date or datetime (no zone: UTC); NO_TIME for any other string."""
    if not _ISO.fullmatch(text):
        return NO_TIME
    try:
        moment = datetime.fromisoformat(text.upper() if text[-1] == "z" else text)
    except ValueError:
        return NO_TIME
    seconds = (moment.toordinal() - _EPOCH) * 86400 + moment.hour * 3600 + moment.minute * 60 + moment.second
    offset = moment.utcoffset()
    return seconds * _SECOND + moment.microsecond - (offset // timedelta(microseconds=1) if offset else 0)
