"""Every error nestvec raises on purpose, and whose fault it is.

* NestvecError
  + InvalidInput           the caller sent something unusable: fix the request
    - InvalidRecord        one record of many; carries its position and id
    - EncoderMismatch      the query's encoder is not the collection's
  + NotFound               the named collection or record does not exist
  + Conflict               it exists already, or differs from what was asked
  + Busy                   somebody else holds it; try again, or stop them
  + DatabaseLocked         another service owns this directory; carries its pid
  + OutcomeUnknown         a commit failed half-way: the write may or may not be there
  + NoSpace                the disk or quota is full: nothing was changed; free some space
  + Damaged                a checksum or format check failed; names the file
  + MissingDependency      an optional package is absent; names the command that installs it
  + EncoderUnavailable     an encoder's endpoint did not answer, or not with vectors; nothing was changed
  + NoAnswer               the client heard nothing from the service; says whether the request was sent
  + ServiceError           the service refused or failed for a reason of its own: a key, a time limit, a fault

The core knows no HTTP: `nestvec.server.errors` maps these to status codes once.
"""

from __future__ import annotations


class NestvecError(Exception):
    """Root of every deliberate error."""


class InvalidInput(NestvecError, ValueError):
    """The caller's input cannot be used; the message says what was expected and what came."""


class InvalidRecord(InvalidInput):
    """One record cannot be used.

    `position` is its 0-based place in the input (row of a file, item of a request) and `id` its id if it has one.
    """

    def __init__(self, position: int, id: str | None, reason: str) -> None:
        self.position, self.id, self.reason = position, id, reason
        name = f" (id {id!r})" if id is not None else ""
        super().__init__(f"row {position}{name}: {reason}")


class EncoderMismatch(InvalidInput):
    """A text query would be encoded by another encoder than the collection's vectors were."""


class NotFound(NestvecError, LookupError):
    """The named collection or record does not exist."""


class Conflict(NestvecError):
    """The thing exists already, or its configuration differs from what was asked."""


class Busy(NestvecError):
    """Somebody else is writing or maintaining this collection; nothing was changed."""


class DatabaseLocked(Busy):
    """Another service owns the database directory; `pid` is its process id (0 if unknown)."""

    def __init__(self, path: str, pid: int) -> None:
        self.path, self.pid = path, pid
        super().__init__(f"{path} is served by process {pid}; stop it first, or serve another directory")


class OutcomeUnknown(NestvecError):
    """A commit failed: the write may or may not be durable. Reopen and read before writing again."""


class NoSpace(NestvecError):
    """The disk, a quota or a limit on file sizes is reached; nothing was changed, and reads go on."""


class Damaged(NestvecError):
    """A stored file fails its checksum or format check; `path` names it."""

    def __init__(self, path: str, reason: str) -> None:
        self.path, self.reason = path, reason
        super().__init__(f"{path}: {reason}")


class EncoderUnavailable(NestvecError):
    """A model behind a network (an encoder, or the LLM that training asks) did not answer in time, or not with what it
    should. The message holds no key."""


class MissingDependency(NestvecError, ImportError):
    """An optional package is not installed; the message holds the command that installs it."""

    def __init__(self, what: str, extra: str) -> None:
        super().__init__(f"{what} needs an optional package. Install it with: pip install 'nestvec[{extra}]'")


class NoAnswer(NestvecError):
    """The service could not be reached or did not answer in time; `sent`: the request may have been carried out."""

    def __init__(self, reason: str, *, sent: bool) -> None:
        self.sent = sent
        after = "; it may or may not have been carried out" if sent else ""
        super().__init__(f"no answer: {reason}{after}")


class ServiceError(NestvecError):
    """The service answered with an error that no engine raises; `status` is HTTP's, `code` the service's word."""

    def __init__(self, detail: str, status: int, code: str) -> None:
        self.status, self.code = status, code
        super().__init__(detail)
