"""From a directory to a running service: claim it, open the socket, answer that it lives, open it, serve.

What takes long to import is imported once somebody answers.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from nestvec.engine.keys import all_keys
from nestvec.engine.storage.ledger import FILE_NAME as LEDGER_FILE
from nestvec.engine.storage.ledger import Ledger
from nestvec.engine.storage.locks import FileLock
from nestvec.engine.storage.root import SERVICE_LOCK, open_root
from nestvec.errors import DatabaseLocked
from nestvec.server.logs import RequestLog, configure
from nestvec.server.settings import Settings, check_bind
from nestvec.server.waiting import WaitingRoom, listen

logger = logging.getLogger("nestvec.server")


def serve(path: Path | str, settings: Settings) -> None:
    """Serve the database directory at `path` until SIGTERM or SIGINT; requests in flight are finished.

    With `settings.workers` over 1 this process only watches over as many others. Raises InvalidInput for an address
    that needs an API key, DatabaseLocked if another service owns the directory, OSError for an address in use.
    """
    configure(settings.log_level)
    root = Path(path)
    open_root(root, create=True)
    with _claimed(root):
        stored_keys = _has_keys(root)
        check_bind(settings, stored_keys=stored_keys)
        with listen(settings) as listener:
            room = WaitingRoom(listener)
            with room:
                host, port = listener.getsockname()[:2]
                access = "API key required" if stored_keys or settings.api_key else "no API key, so loopback only"
                logger.info("serving %s on http://%s:%d (%s)", path, f"[{host}]" if ":" in host else host, port, access)
                from nestvec.engine.database import open as open_database
                from nestvec.engine.jobs import fail_interrupted
                from nestvec.engine.storage.generation import share_files
                from nestvec.server.app import create_app
                from nestvec.server.process import run
                from nestvec.server.workers import supervise

                if settings.workers > 1:
                    share_files()
                database = open_database(root)
            with database:
                fail_interrupted(database.ledger)
                if settings.workers > 1:
                    supervise(database, settings, listener)
                else:
                    run(create_app(database, settings, RequestLog(settings.log_level)), settings, listener)


@contextmanager
def _claimed(root: Path) -> Iterator[None]:
    """Own the directory among services, before anything in it is looked at."""
    lock = FileLock(root / SERVICE_LOCK)
    if not lock.try_acquire():
        raise DatabaseLocked(str(root), lock.holder())
    try:
        lock.write_pid()
        yield
    finally:
        lock.release()


def _has_keys(root: Path) -> bool:
    if not (root / LEDGER_FILE).exists():
        return False
    ledger = Ledger(root / LEDGER_FILE)
    try:
        return bool(all_keys(ledger))
    finally:
        ledger.close()
