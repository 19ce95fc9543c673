"""A loopback OpenAI-compatible server: the real client library talks to it, in tests and in the sandbox.

What it answers is scripted (sandbox/model_behaviours.py) or comes from a small model of rules.
"""

from __future__ import annotations

import asyncio
import hmac
import json
import logging
from collections import deque
from typing import TYPE_CHECKING, Any, Self

from aiohttp import web

from sandbox.model_behaviours import CREATED, Cut, Forever, Reply, error, refuse, reply_to
from sandbox.model_requests import complaints
from sandbox.model_rules import small_model

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence
    from types import TracebackType

    from sandbox.bodies import Json
    from sandbox.model_behaviours import Behaviour

    Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]

log = logging.getLogger(__name__)

HOST = "127.0.0.1"
REQUEST_LIMIT = 32 * 2**20
REQUESTS_KEPT = 1000


class LoopbackModel:
    """A language model's server on a free port of 127.0.0.1, for as long as the `async with` lasts.

    The next answers are scripted; without a script the small model of rules answers. Not thread-safe: call
    it from its event loop.

    Args:
        api_key: what a client must show; None takes any, and none.
        model: the only name of a model that is known here.
        strict: refuse with 400 what OpenAI would refuse; what was wrong is in `complaints`.
    """

    def __init__(self, *, api_key: str | None = None, model: str = "loopback", strict: bool = True) -> None:
        self.api_key = api_key
        self.model = model
        self.strict = strict
        self.complaints: list[str] = []
        self._script: deque[Behaviour] = deque()
        self._requests: deque[tuple[Json, str | None]] = deque(maxlen=REQUESTS_KEPT)
        self._seen = 0
        self._answering = 0
        self._changed = asyncio.Event()
        self._failures: list[Exception] = []
        self._runner: web.AppRunner | None = None
        self._port = 0

    async def __aenter__(self) -> Self:
        application = web.Application(client_max_size=REQUEST_LIMIT, middlewares=[self._guard])
        application.router.add_post("/v1/chat/completions", self._complete)
        application.router.add_get("/v1/models", self._list_models)
        application.router.add_get("/v1/models/{model}", self._get_model)
        # A client that goes away ends the answer that it was waiting for, also one that hangs.
        self._runner = web.AppRunner(application, access_log=None, shutdown_timeout=1.0, handler_cancellation=True)
        await self._runner.setup()
        await web.TCPSite(self._runner, HOST, 0).start()
        self._port = self._runner.addresses[0][1]
        log.debug("The loopback model listens on port %d", self._port, extra={"event": "loopback_model_listening"})
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Stop at once, whatever hangs; raise what a scripted function raised, so that its assertions count."""
        if self._runner is not None and self._runner.server is not None:
            for connection in self._runner.server.connections:
                connection.force_close()
            await self._runner.cleanup()
        if self._failures and exc is None:
            raise self._failures[0]

    @property
    def url(self) -> str:
        """What a client takes as its `base_url`."""
        return f"http://{HOST}:{self._port}/v1"

    @property
    def requests(self) -> Sequence[Json]:
        """The bodies of the latest chat completions, in order of their coming, also of those that were refused."""
        return [body for body, _ in self._requests]

    @property
    def authorizations(self) -> Sequence[str | None]:
        """The Authorization header of each of `requests`."""
        return [authorization for _, authorization in self._requests]

    @property
    def unplayed(self) -> int:
        """How much of the script is left."""
        return len(self._script)

    @property
    def answering(self) -> int:
        """How many requests are being answered now, counting those that hang."""
        return self._answering

    def script(self, *behaviours: Behaviour) -> None:
        """Answer the next requests with these, one a request, after what was scripted before."""
        self._script.extend(behaviours)

    def clear_script(self) -> None:
        """Forget the rest of the script: the small model answers."""
        self._script.clear()

    async def wait_for_requests(self, n: int, timeout_s: float = 5.0) -> None:
        """Return once there were *n* chat completions in all.

        Raises:
            TimeoutError: There were fewer within *timeout_s*.
        """
        try:
            await self._wait_until(lambda: self._seen >= n, timeout_s)
        except TimeoutError as exc:
            raise TimeoutError(f"{self._seen} of {n} requests came within {timeout_s:g} s") from exc

    async def wait_until_idle(self, timeout_s: float = 5.0) -> None:
        """Return once nothing is being answered: every answer was read to its end, or its reader went away.

        Raises:
            TimeoutError: Something still was after *timeout_s*.
        """
        try:
            await self._wait_until(lambda: self._answering == 0, timeout_s)
        except TimeoutError as exc:
            raise TimeoutError(f"{self._answering} answers were still open after {timeout_s:g} s") from exc

    async def _wait_until(self, condition: Callable[[], bool], timeout_s: float) -> None:
        async with asyncio.timeout(timeout_s):
            while not condition():
                await self._changed.wait()

    def _change(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()

    @web.middleware
    async def _guard(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        self._answering += 1
        try:
            return await handler(request)
        finally:
            self._answering -= 1
            self._change()

    async def _list_models(self, request: web.Request) -> web.StreamResponse:
        if not self._is_welcome(request):
            return await send(request, refuse(401).reply({}))
        return web.json_response({"object": "list", "data": [self._model_card()]})

    async def _get_model(self, request: web.Request) -> web.StreamResponse:
        if not self._is_welcome(request):
            return await send(request, refuse(401).reply({}))
        if request.match_info["model"] != self.model:
            return await send(request, refuse(404).reply({}))
        return web.json_response(self._model_card())

    async def _complete(self, request: web.Request) -> web.StreamResponse:
        body = await parsed(request)
        if body is None:
            return await send(request, refuse(400, body=error(400, "We could not parse the JSON body.")).reply({}))
        self._requests.append((body, request.headers.get("Authorization")))
        self._seen += 1
        self._change()
        return await send(request, self._refusal(request, body) or self._next(body))

    def _refusal(self, request: web.Request, body: Json) -> Reply | None:
        if not self._is_welcome(request):
            return refuse(401).reply(body)
        if body.get("model") != self.model:
            return refuse(404).reply(body)
        wrong = list(complaints(body)) if self.strict else []
        if not wrong:
            return None
        self.complaints += wrong
        log.warning("The loopback model refused a request: %s", wrong[0], extra={"event": "loopback_model_refused"})
        return refuse(400, body=error(400, wrong[0])).reply(body)

    def _next(self, body: Json) -> Reply:
        behaviour: Behaviour = self._script[0] if self._script else small_model
        if self._script and not isinstance(behaviour, Forever):
            self._script.popleft()
        try:
            return reply_to(body, behaviour)
        except Exception as exc:
            self._failures.append(exc)
            raise

    def _is_welcome(self, request: web.Request) -> bool:
        if self.api_key is None:
            return True
        shown = request.headers.get("Authorization", "")
        return hmac.compare_digest(shown.encode(), f"Bearer {self.api_key}".encode())

    def _model_card(self) -> Json:
        return {"id": self.model, "object": "model", "created": CREATED, "owned_by": "sandbox"}


async def parsed(request: web.Request) -> Json | None:
    try:
        body: Any = json.loads(await request.read())
    except ValueError:
        return None
    return body if isinstance(body, dict) else None


async def send(request: web.Request, reply: Reply) -> web.StreamResponse:
    response = web.StreamResponse(status=reply.status, headers={"Content-Type": reply.content_type, **reply.headers})
    for piece in reply.pieces:
        if isinstance(piece, asyncio.Event):
            await piece.wait()
        elif piece is Cut.CUT:
            await cut(request)
        else:
            if not response.prepared:
                await response.prepare(request)
            if piece:  # an empty chunk would end the body
                await response.write(piece)
    return response


async def cut(request: web.Request) -> None:
    """Drop the connection, after what was written to it, and never return: the loss cancels whoever waits."""
    if request.transport is not None:
        request.transport.close()
    await asyncio.Event().wait()
