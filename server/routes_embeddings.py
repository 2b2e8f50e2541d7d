"""Texts to vectors in the shape of OpenAI's embeddings API, with the encoders that this database uses."""

from __future__ import annotations

import base64

import msgspec
import numpy as np
from fastapi import FastAPI, Request, Response
from numpy.typing import NDArray

from nestvec.engine.encoders.protocol import Encoder
from nestvec.engine.encoders.registry import load_encoder
from nestvec.server.codec import check_batch
from nestvec.server.errors import RequestProblem, invalid
from nestvec.server.models import EmbeddingsBody, EmbeddingsReply
from nestvec.server.openapi import problems
from nestvec.server.scopes import visible
from nestvec.server.service import Service, TheService

_ALWAYS = "static"


async def embeddings(service: TheService, request: Request, body: EmbeddingsBody) -> Response:
    """The vectors of texts. `dimensions` cuts them to a granularity of the encoder, scaled to length 1 again."""
    return await service.run(lambda: _embeddings(service, request, body))


def _embeddings(service: Service, request: Request, body: EmbeddingsBody) -> Response:
    texts = [body.input] if isinstance(body.input, str) else body.input
    check_batch(texts, service.settings.max_batch, "input")
    _check_model(service, request, body.model)
    encoder = load_encoder(body.model)
    dims = _dims(encoder, body.dimensions)
    encode = encoder.encode_queries if body.input_type == "query" else encoder.encode_documents
    vectors = _prefixes(encode(texts), dims)
    words = sum(len(text.split()) for text in texts)
    reply = {
        "object": "list",
        "model": body.model,
        "data": [
            {"object": "embedding", "index": i, "embedding": _written(vector, body.encoding_format)}
            for i, vector in enumerate(vectors)
        ],
        "usage": {"prompt_tokens": words, "total_tokens": words},
    }
    return Response(msgspec.json.encode(reply), media_type="application/json")


def _check_model(service: Service, request: Request, model: str) -> None:
    """404 unless it is the built-in encoder, or that of a collection which the caller may see."""
    used = {
        info.config.encoder
        for info in service.database.collections()
        if info.config.encoder is not None and visible(request, info.name)
    }
    if model not in {_ALWAYS, *used}:
        there = ", ".join(sorted({_ALWAYS, *used}))
        raise RequestProblem(404, "not_found", f"there is no such model here; there is: {there}")


def _dims(encoder: Encoder, wanted: int | None) -> int:
    if wanted is None:
        return encoder.dims
    if wanted not in encoder.granularities:
        allowed = ", ".join(map(str, encoder.granularities))
        raise invalid(f"expected dimensions to be one of {allowed}; got {wanted}", "/dimensions")
    return wanted


def _prefixes(vectors: NDArray[np.float32], dims: int) -> NDArray[np.float32]:
    if dims == vectors.shape[1]:
        return vectors
    short = vectors[:, :dims]
    norms = np.sqrt(np.einsum("ij,ij->i", short, short))
    norms[norms == 0] = 1
    scaled: NDArray[np.float32] = short / norms[:, None]
    return scaled


def _written(vector: NDArray[np.float32], form: str) -> str | list[float]:
    if form == "base64":
        return base64.b64encode(vector.astype("<f4").tobytes()).decode()
    numbers: list[float] = vector.tolist()
    return numbers


def add_routes(app: FastAPI) -> None:
    """Register the routes of this file."""
    app.add_api_route("/v1/embeddings", embeddings, methods=["POST"], operation_id="embeddings", tags=["embeddings"],
                      response_class=Response,
                      responses={200: {"model": EmbeddingsReply}, **problems(400, 404, 422, 501, 502)})  # fmt: skip
