"""`cones serve`: one Concept over HTTP, for programs of this machine unless there is a token; no code but this runs.

`POST /predict` takes one picture as its body, with a content type of `image/...`, or several as JSON, `{"pictures":
["<base64>", ...]}`, and answers what `cones predict` writes into predictions.json, with the pictures' numbers as paths.
`POST /generate` takes `{"prompt": "a photo of a {}", "n": 1, "seed": 0}` and answers `{"pictures": ["<PNG, base64>"]}`.
`GET /` says what is served, `GET /health` that it is there. A mistake is answered by `{"error": "<one line>"}`; only
what is no HTTP, and what comes while too many connections are open, by a line of plain text.

A web page in a browser of this machine can reach what listens here, so requests of pages, and for another host's name,
are refused, and none of them names a file.
"""

import asyncio
import base64
import ipaddress
import os
import re
import secrets
import socket
import sys
from collections.abc import Callable
from dataclasses import asdict
from io import BytesIO
from pathlib import Path
from threading import Lock
from typing import Annotated, Any, TypeVar

from anyio import CapacityLimiter, to_thread
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from starlette.applications import Starlette
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from cones.common.errors import ConesError
from cones.common.messages import first_mistake
from cones.common.process import STOPPED_CODE
from cones.data.pictures import open_picture
from cones.inference.files import open_concept
from cones.inference.open import OpenConcept
from cones.tasks.detection.infer import coco_dataset

MOST_BYTES = 64 << 20
"""Of a request's body."""
BODY_SECONDS = 60.0
"""In which a body must be here."""
AT_ONCE = 16
"""Connections; the model answers them one after the other."""
TOKEN = "CONES_SERVE_TOKEN"
SHORTEST = 16
"""Characters of a token."""
LOOPBACK = ("127.0.0.1", "localhost", "[::1]")


class Pictures(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, val_json_bytes="base64")
    pictures: Annotated[list[bytes], Field(min_length=1, max_length=32)]


class Wanted(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)
    prompt: Annotated[str, Field(max_length=2000)] | None = None
    n: Annotated[int, Field(ge=1, le=8)] = 1
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0


Asked = TypeVar("Asked", Pictures, Wanted)


class Guard:
    """Refuses requests for another host's name, those that a web page of another place makes, and those without the
    token if there is one."""

    def __init__(self, app: ASGIApp, hosts: tuple[str, ...], token: str | None) -> None:
        self.app, self.hosts, self.token = app, [host.lower() for host in hosts], token

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        refusal = self._refusal(Headers(scope=scope)) if scope["type"] == "http" else None
        await (refusal or self.app)(scope, receive, send)

    def _refusal(self, headers: Headers) -> JSONResponse | None:
        name = re.sub(r":\d*$", "", headers.get("host", "")).lower()
        if not {name, "*"} & set(self.hosts):
            return JSONResponse({"error": f"this answers to no other name than {', '.join(self.hosts)}"}, 400)
        own = {f"{scheme}://{headers.get('host')}" for scheme in ("http", "https")}
        if not set(headers.getlist("origin")) <= own:
            return JSONResponse({"error": "this answers no web page of another place"}, 403)
        given, wanted = headers.get("authorization", ""), f"Bearer {self.token}"
        if self.token is None or secrets.compare_digest(given.encode(), wanted.encode()):
            return None
        how = "give the token in a header, Authorization: Bearer TOKEN"
        return JSONResponse({"error": how}, 401, {"WWW-Authenticate": "Bearer"})


def app_of(concept: OpenConcept, hosts: tuple[str, ...] = LOOPBACK, token: str | None = None) -> Starlette:
    """The application that answers for a Concept, to requests for one of `hosts` ("*": any), with the token.

    Its `state.working` is held by the thread that works on a request, also when nobody waits for it any more.
    """
    card, one, working = concept.card, CapacityLimiter(1), Lock()

    async def about(request: Request) -> JSONResponse:
        facts = ("concept", "row", "task", "classes", "templates", "score_threshold", "val")
        return JSONResponse({**card.model_dump(include=set(facts)), "base": card.base.name})

    async def health(request: Request) -> JSONResponse:
        return JSONResponse({"status": "ok"})

    async def predict(request: Request) -> JSONResponse:
        given = pictures_of(request.headers.get("content-type", ""), await body_of(request))
        return await in_turn(lambda: predicted(concept, given))

    async def generate(request: Request) -> JSONResponse:
        wanted = read(Wanted, request.headers.get("content-type", ""), await body_of(request))
        return await in_turn(lambda: generated(concept, wanted))

    async def in_turn(work: Callable[[], dict[str, Any]]) -> JSONResponse:
        def alone() -> dict[str, Any]:
            with working:
                return work()

        try:
            return JSONResponse(await to_thread.run_sync(alone, limiter=one, abandon_on_cancel=True))
        except asyncio.CancelledError:
            return JSONResponse({"error": "this server is ending"}, 503)

    routes = [Route("/", about), Route("/health", health)]
    does: tuple[str, Callable] = ("/generate", generate) if card.task == "generation" else ("/predict", predict)
    routes.append(Route(does[0], does[1], methods=["POST"]))
    handlers: Any = {
        ConesError: lambda request, error: JSONResponse({"error": str(error)}, 400),
        HTTPException: lambda request, error: JSONResponse({"error": error.detail}, error.status_code, error.headers),
        Exception: lambda request, error: JSONResponse({"error": "this went wrong here; the log says how"}, 500),
    }
    made = Starlette(routes=routes, middleware=[Middleware(Guard, hosts, token)], exception_handlers=handlers)
    made.state.working = working
    return made


async def body_of(request: Request) -> bytes:
    """A request's body, which ends the request once it is too long, or too slow."""
    body = bytearray()
    try:
        async with asyncio.timeout(BODY_SECONDS):
            async for chunk in request.stream():
                body += chunk
                if len(body) > MOST_BYTES:
                    raise HTTPException(413, f"a body may have {MOST_BYTES >> 20} MB", {"Connection": "close"})
    except ClientDisconnect:
        raise HTTPException(400, "the body was cut off") from None
    except TimeoutError:
        raise HTTPException(408, f"a body must be here within {BODY_SECONDS:g} seconds") from None
    return bytes(body)


def read(kind: type[Asked], content_type: str, body: bytes) -> Asked:
    """JSON from outside; a page cannot send it unasked, unlike a form, so its content type must say that it is."""
    if content_type.partition(";")[0].strip().lower() != "application/json":
        raise HTTPException(415, "the content type must be application/json, or for a picture image/...")
    try:
        return kind.model_validate_json(body)
    except ValidationError as error:
        raise HTTPException(400, first_mistake(error).removeprefix(": ")[:300]) from None


def pictures_of(content_type: str, body: bytes) -> list[bytes]:
    """The files of pictures that a request brings."""
    if content_type.lower().startswith("image/"):
        return [body]
    return read(Pictures, content_type, body).pictures


def predicted(concept: OpenConcept, given: list[bytes]) -> dict[str, Any]:
    """What predictions.json would hold of these files; one is opened at a time, as pixels they may take much memory."""
    card, found = concept.card, list[Any]()
    for i, content in enumerate(given):
        found += concept.predict([open_picture(content, f"picture {i}")])
    about = {"concept": card.concept, "row": card.row, "base": card.base.name, "base_sha256": card.base.sha256}
    if card.task == "classification":
        return {**about, "predictions": [{"path": str(i), **asdict(one)} for i, one in enumerate(found)]}
    info = {**about, "score_threshold": card.score_threshold}
    return {"info": info, **coco_dataset([Path(str(i)) for i in range(len(found))], found, card.classes)}


def generated(concept: OpenConcept, wanted: Wanted) -> dict[str, Any]:
    """Pictures of what a prompt says, as PNG in base64."""
    pictures = []
    for picture in concept.generate(wanted.prompt, wanted.n, wanted.seed):
        buffer = BytesIO()
        picture.save(buffer, "PNG")
        pictures.append(base64.b64encode(buffer.getvalue()).decode())
    return {"pictures": pictures}


def token_for(host: str) -> str | None:
    """The token that requests must bring, of the environment; `ConesError` where a host that others reach lacks one."""
    token = os.environ.get(TOKEN) or None
    if token is not None and (len(token) < SHORTEST or not token.isascii() or not token.isprintable() or " " in token):
        raise ConesError(f"{TOKEN} must have {SHORTEST} or more ASCII characters without blanks, got {len(token)}")
    if token is None and not is_loopback(host):
        raise ConesError(
            f"on {host} other machines can reach this, so it needs a token: set {TOKEN} to {SHORTEST} or more random "
            "characters, which each request must bring (Authorization: Bearer TOKEN), or leave --host out"
        )
    return token


def is_loopback(host: str) -> bool:
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def serve(
    concept: str, host: str, port: int, device: str = "auto", base: Path | None = None, fetch: bool | None = None
) -> None:
    """Answer for a Concept until Ctrl-C; its base model is opened and checked first.

    Raises `ConesError` for an address that cannot be used, and for one that others reach where there is no token.
    """
    import uvicorn

    from cones.inference.connections import Connection

    token = token_for(host)
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        listening = socket.create_server((host, port), family=family)
    except (OSError, OverflowError, ValueError) as error:
        raise ConesError(f"{host} port {port} cannot be used ({error}); give another --port or --host") from None
    with listening:
        opened = open_concept(concept, base, device, fetch)
        on = opened.backbone.device
        shown = f"[{host}]" if family == socket.AF_INET6 else host
        hosts = (*LOOPBACK, shown) if is_loopback(host) else ("*",)  # no page of another place has the token
        application = app_of(opened, hosts, token)
        settings = uvicorn.Config(
            application, http=Connection, log_level="warning", access_log=False, server_header=False,
            proxy_headers=False, limit_concurrency=AT_ONCE, timeout_graceful_shutdown=2, ws="none",
        )  # fmt: skip
        at = f"http://{shown}:{listening.getsockname()[1]}"
        print(f"`{opened.card.concept}` answers at {at}, on {on}; Ctrl-C ends it", flush=True)
        try:
            uvicorn.Server(settings).run(sockets=[listening])
        except KeyboardInterrupt:
            if not application.state.working.acquire(blocking=False):  # its thread cannot be stopped
                print("stopped within a request", file=sys.stderr, flush=True)
                os._exit(STOPPED_CODE)
            raise
