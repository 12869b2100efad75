"""The reward server: `prefscale serve`."""

import copy
import hashlib
import io
import json
import secrets
import tempfile
import zipfile
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from threading import Lock
from typing import Annotated, Any

from fastapi import Depends, FastAPI, HTTPException, Request, Response
from fastapi.responses import JSONResponse, PlainTextResponse
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from pydantic import BaseModel, ConfigDict, Field

from ..data.tokens import EncodedResponse
from ..reward.record import finder, read_record
from ..reward.scorer import RewardFunction
from ..reward.scores import ResponseScore
from .batching import Batcher, Rows
from .protocol import MODEL_HEADER, known_by, pack_scores

MOST_ROWS, MOST_BYTES = 4096, 256 * 2**20  # of one request
Text = str | list[dict[str, Any]]


class Strict(BaseModel):
    """A request body that refuses what it does not know."""

    model_config = ConfigDict(extra="forbid", strict=True)


class Row(Strict):
    """Token ids of a prompt with its response."""

    input_ids: list[Annotated[int, Field(ge=0)]]
    response_start: Annotated[int, Field(ge=1, description="Index of the response's first token.")]


class RowsRequest(Strict):
    """Rows that the client has encoded with the model's tokenizer."""

    rows: Annotated[list[Row], Field(min_length=1, max_length=MOST_ROWS)]


class ScoreRequest(Strict):
    """Prompts and responses as text, or as messages."""

    prompts: Annotated[list[Text], Field(min_length=1, max_length=MOST_ROWS)]
    completions: Annotated[list[Text], Field(min_length=1, max_length=MOST_ROWS)]
    details: bool = Field(False, description="Whether to give scores of tokens and values of prefixes, too.")


class OpenRLHFRequest(BaseModel):
    """What OpenRLHF sends to a remote reward model; further fields are passed over."""

    query: Annotated[list[str], Field(min_length=1, max_length=MOST_ROWS)]
    prompts: Annotated[list[str], Field(min_length=1, max_length=MOST_ROWS)]


def make_app(reward: RewardFunction, name: str, key: str | None = None, most_rows: int = 256) -> FastAPI:
    """
    The server as an ASGI application.

    Args:
        reward ([`RewardFunction`]):
            The reward model.
        name (`str`):
            Its folder or hub name.
        key (`str`, *optional*):
            What requests must bring as `Authorization: Bearer KEY`; none is asked for without it.
        most_rows (`int`, *optional*, defaults to `256`):
            Most rows of waiting requests that are scored together; with 0 each request is scored alone.

    Returns:
        `fastapi.FastAPI`
    """
    about, numbers = _about(reward, name), _Numbers()
    batcher = Batcher(reward.score_encoded, most_rows, reward.batch_size)
    numbers.waiting.set_function(batcher.waiting)
    app = FastAPI(title="prefscale reward server", description=f"Scores of '{about['model']}'.")
    app.middleware("http")(numbers.count)
    app.exception_handler(ValueError)(_refuse)
    allowed = [Depends(_asks_for(key))]

    def scored(rows: Rows) -> list[ResponseScore]:
        _check(rows, reward)
        numbers.rows.inc(len(rows))
        return batcher.submit(rows).result()

    # Makes rows of text as the model itself does, and has them scored in their turn
    of_text, tokenizing = copy.copy(reward), Lock()
    of_text.score_encoded = scored  # type: ignore[method-assign]

    # What is at hand is answered outside the threads, which may all be waiting for the model

    @app.get("/health")
    async def health() -> dict[str, str]:
        """Whether the server answers."""
        return {"status": "ok"}

    @app.get("/metrics", dependencies=allowed, response_class=PlainTextResponse)
    async def metrics() -> Response:
        """Requests, rows, seconds and the queue, in the form that Prometheus reads."""
        return Response(generate_latest(numbers.registry), media_type=CONTENT_TYPE_LATEST)

    @app.get("/model", dependencies=allowed)
    async def model() -> dict[str, Any]:
        """What is served."""
        return about

    @app.get("/tokenizer", dependencies=allowed)
    def tokenizer() -> Response:
        """The files of the model's tokenizer, as a zip archive."""
        return Response(_tokenizer_files(reward), media_type="application/zip")

    @app.post("/rows", dependencies=allowed)
    def rows(request: RowsRequest) -> Response:
        """Scores of encoded rows, with the values of their prefixes, as a safetensors file."""
        encoded = [EncodedResponse(row.input_ids, row.response_start, []) for row in request.rows]
        return Response(
            pack_scores(scored(encoded)),
            media_type="application/octet-stream",
            headers={MODEL_HEADER: known_by(about)},
        )

    @app.post("/score", dependencies=allowed)
    def score(request: ScoreRequest) -> dict[str, Any]:
        """Scores of responses that are given as text or messages; null for an empty one."""
        with tokenizing:
            rows = reward._rows(request.prompts, request.completions, None, {})
        found = of_text._of_batch(request.prompts, of_text._score_rows(rows))
        return {"scores": [one and _shown(one, reward, request.details) for one in found]}

    @app.post("/get_reward", dependencies=allowed)
    def get_reward(request: OpenRLHFRequest) -> dict[str, Any]:
        """OpenRLHF's protocol: whole texts, template included, each with the prompt that it begins with."""
        with tokenizing:
            encoded = _whole_texts(request, reward)
        rewards = [found.reward for found in scored(encoded)]
        return {"rewards": rewards, "scores": rewards, "extra_logs": {}}

    return app


class _Numbers:
    """What `/metrics` shows."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        options: Any = {"namespace": "prefscale", "registry": self.registry}
        self.requests = Counter("requests", "Requests, by path and status.", ["path", "status"], **options)
        self.rows = Counter("rows", "Rows that were scored.", **options)
        self.seconds = Histogram("request_seconds", "Time of a request.", **options)
        self.waiting = Gauge("waiting_requests", "Requests that wait for the model.", **options)

    async def count(self, request: Request, call_next: Any) -> Any:
        """Count a request, or refuse it for its size."""
        # One in chunks does not say its length
        length = request.headers.get("content-length", "?" if "transfer-encoding" in request.headers else "0")
        if length.isdecimal() and int(length) <= MOST_BYTES:
            with self.seconds.time():
                response = await call_next(request)
        else:
            found = f"A request says its length, of at most {MOST_BYTES:,} bytes."
            response = PlainTextResponse(found, status_code=413)
        route = request.scope.get("route")  # not the path itself, which may be anything
        self.requests.labels("other" if route is None else route.path, str(response.status_code)).inc()
        return response


def _refuse(request: Request, error: Exception) -> Response:
    """What is wrong with a request, as FastAPI says it of others."""
    return JSONResponse({"detail": str(error)}, status_code=422)


def _asks_for(key: str | None) -> Callable[..., Any]:
    bearer = HTTPBearer(auto_error=False)

    async def check(given: Annotated[HTTPAuthorizationCredentials | None, Depends(bearer)]) -> None:
        found = "" if given is None else given.credentials
        if key is not None and not secrets.compare_digest(found.encode(), key.encode()):
            raise HTTPException(401, "Give the server's key as `Authorization: Bearer KEY`.")

    return check


def _about(reward: RewardFunction, name: str) -> dict[str, Any]:
    """What a client must know of the model, and by what it knows the same one again after a restart."""
    record = read_record(finder(name))
    files: dict[str, Any] = {}
    if record is not None:
        files = {file: mark.sha256 for file, mark in record.weights.items()}
        if record.base is not None:  # of an adapter
            files |= {f"base/{file}": mark.sha256 for file, mark in record.base.weights.items()}
    return {
        "model": Path(name).name,
        "weights": hashlib.sha256(json.dumps(files, sort_keys=True).encode()).hexdigest(),
        "settings": asdict(reward.settings),
        "max_length": reward.max_length,
        "end_ids": sorted(reward.end_ids),
        "chat_template_kwargs": reward.chat_template_kwargs,
    }


def _tokenizer_files(reward: RewardFunction) -> bytes:
    content = io.BytesIO()
    with tempfile.TemporaryDirectory() as folder, zipfile.ZipFile(content, "w") as archive:
        reward.processing_class.save_pretrained(folder)
        for path in sorted(Path(folder).rglob("*")):
            archive.write(path, path.relative_to(folder))
    return content.getvalue()


def _check(rows: Rows, reward: RewardFunction) -> None:
    """Refuse rows that the model cannot read."""
    vocabulary = reward.model.get_input_embeddings().num_embeddings
    for number, row in enumerate(rows, start=1):
        if not 0 < row.response_start < len(row.input_ids):
            raise ValueError(f"Row {number} has {len(row.input_ids)} tokens, and `response_start` is none after them.")
        if reward.max_length is not None and len(row.input_ids) > reward.max_length:
            raise ValueError(f"Row {number} has {len(row.input_ids)} tokens, of at most {reward.max_length}.")
        if max(row.input_ids) >= vocabulary:
            raise ValueError(f"Row {number} has the id {max(row.input_ids)}, of a vocabulary of {vocabulary}.")


def _whole_texts(request: OpenRLHFRequest, reward: RewardFunction) -> list[EncodedResponse]:
    if len(request.query) != len(request.prompts):
        raise ValueError(f"`query` has {len(request.query)} entries and `prompts` {len(request.prompts)}.")
    encoded = []
    for number, (text, prompt) in enumerate(zip(request.query, request.prompts, strict=True), start=1):
        if not text.startswith(prompt):
            raise ValueError(f"Entry {number} of `query` does not begin with its prompt.")
        parts = [
            reward.processing_class(part, add_special_tokens=False).input_ids for part in (prompt, text[len(prompt) :])
        ]
        encoded.append(EncodedResponse(parts[0] + parts[1], len(parts[0]), []))
    return encoded


def _shown(score: ResponseScore, reward: RewardFunction, details: bool) -> dict[str, Any]:
    scales = reward.settings.scales
    shown: dict[str, Any] = {
        "reward": score.reward,
        "scales": dict(zip(scales, score.scale_scores.tolist(), strict=True)),
        "weights": dict(zip(scales, score.gate.tolist(), strict=True)),
    }
    if details:
        names = ("prefix_values", "token_scores", "segment_scores", "segment_ends")
        shown |= {name: getattr(score, name).tolist() for name in names} | {"ends": score.ends}
    return shown
