"""The request parser: bodies of the hot routes in JSON, msgpack and Arrow, up to the engine's records and options."""

from __future__ import annotations

import json

from target import allowed, fuzz, instrumented

with instrumented():
    import msgspec

    from nestvec.errors import InvalidInput
    from nestvec.server import wire, wire_recall
    from nestvec.server.arrow import decode_stream
    from nestvec.server.codec import to_filter, to_input, to_options
    from nestvec.server.codec_records import to_records
    from nestvec.server.errors import RequestProblem, reply
    from nestvec.server.formats import BodyKind, decode
    from nestvec.server.settings import Settings

DIMS = 4
SETTINGS = Settings(max_batch=50)
KINDS: tuple[type[msgspec.Struct], ...] = (
    wire.QueryBody,
    wire.QueryBatchBody,
    wire.UpsertBody,
    wire.ScrollBody,
    wire.DeleteBody,
    wire.CountBody,
    wire.GetBody,
    wire_recall.ExplainBody,
    wire_recall.MeasureBody,
)
FORMATS: tuple[BodyKind, ...] = ("json", "msgpack", "arrow")


def seeds() -> list[bytes]:
    """The examples of the OpenAPI document in both formats, and an Arrow stream."""
    from nestvec.server.openapi import EXAMPLES

    found = []
    for kind, examples in EXAMPLES.items():
        number = KINDS.index(kind)
        for body in examples.values():
            text = json.dumps(body).encode()
            found.append(bytes([number]) + text)
            found.append(bytes([number + len(KINDS)]) + msgspec.msgpack.encode(decode(text, kind)))
    return [*found, bytes([2 * len(KINDS)]) + arrow_stream()]


def arrow_stream() -> bytes:
    """Two records as an Arrow stream; empty without pyarrow."""
    try:
        import pyarrow as pa
    except ImportError:
        return b""
    columns = {"id": ["a", "b"], "vector": [[0.5] * DIMS] * 2, "text": ["x", None], "payload": ['{"n":1}', None]}
    table = pa.table(columns)
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    return bytes(sink.getvalue())


def check(data: bytes) -> bool:
    """Decode the body and turn it into what the engine takes; a refusal is short and can be sent."""
    if not data:
        return False
    number, kind = divmod(data[0] % (3 * len(KINDS)), len(KINDS))

    def work() -> None:
        try:
            _use(data[1:], KINDS[kind], FORMATS[number])
        except RequestProblem as problem:
            _check_answer(problem)
            raise InvalidInput(problem.detail) from None

    return allowed(work)


def _check_answer(problem: RequestProblem) -> None:
    assert 400 <= problem.status < 500
    assert len(reply(problem, "id").body) <= 16 * 1024


def _use(body: bytes, kind: type[msgspec.Struct], given: BodyKind) -> None:
    parsed = decode_stream(body, 50) if given == "arrow" else decode(body, kind, given)
    if isinstance(parsed, wire.UpsertBody):
        to_records(parsed, DIMS, 50)
    for query in parsed.queries if isinstance(parsed, wire.QueryBatchBody) else [parsed]:
        if isinstance(query, wire.QueryBody):
            to_options(query, SETTINGS, "")
            to_input(query, DIMS, "")
    if isinstance(parsed, wire.ScrollBody | wire.DeleteBody | wire.CountBody):
        to_filter(parsed.filter, SETTINGS, "/filter")


if __name__ == "__main__":
    fuzz(check, seeds())
