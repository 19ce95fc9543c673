"""An OpenAI-compatible embeddings endpoint on loopback, good by default, and as bad as a test wants it."""

from __future__ import annotations

import base64
import hashlib
import re
from collections import deque
from typing import TYPE_CHECKING, Any, Self

import numpy as np
from aiohttp import web

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    Behaviour = Callable[["EmbeddingServer", dict[str, Any]], Awaitable[web.StreamResponse] | web.StreamResponse]


class EmbeddingServer:
    """A model whose vectors are close when texts share words.

    Attributes:
        requests: each body that came.
        authorizations: the header of each of them.
        script: what is done with the next requests, one each; then `always`, if it is set.
    """

    def __init__(self, dimension: int = 16) -> None:
        self.dimension = dimension
        self.requests: list[dict[str, Any]] = []
        self.authorizations: list[str | None] = []
        self.script: deque[Behaviour] = deque()
        self.always: Behaviour | None = None
        self.url = ""
        self._runner: web.AppRunner | None = None

    async def __aenter__(self) -> Self:
        application = web.Application(client_max_size=2**26)
        application.router.add_post("/v1/embeddings", self._embed)
        self._runner = web.AppRunner(application, access_log=None, shutdown_timeout=0.1, handler_cancellation=True)
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", 0).start()
        self.url = f"http://127.0.0.1:{self._runner.addresses[0][1]}/v1"
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._runner is not None
        await self._runner.cleanup()

    @property
    def texts(self) -> list[str]:
        """All texts that ever came, in order."""
        return [text for body in self.requests for text in body["input"]]

    async def _embed(self, request: web.Request) -> web.StreamResponse:
        body = await request.json()
        self.requests.append(body)
        self.authorizations.append(request.headers.get("Authorization"))
        behaviour = self.script.popleft() if self.script else self.always or good
        answer = behaviour(self, body)
        return answer if isinstance(answer, web.StreamResponse) else await answer

    def vector(self, text: str) -> np.ndarray[Any, np.dtype[np.float32]]:
        numbers = np.full(self.dimension, 1e-3, np.float32)
        for word in re.findall(r"\w+", text.lower()):
            numbers[int.from_bytes(hashlib.blake2b(word.encode(), digest_size=4).digest()) % self.dimension] += 1
        return numbers


def good(server: EmbeddingServer, body: dict[str, Any]) -> web.Response:
    return vectors(body, [server.vector(text) for text in body["input"]])


def vectors(body: dict[str, Any], rows: Sequence[np.ndarray[Any, np.dtype[np.float32]]]) -> web.Response:
    as_text = body["encoding_format"] == "base64"
    data = [
        {
            "object": "embedding",
            "index": place,
            "embedding": base64.b64encode(row.astype("<f4").tobytes()).decode() if as_text else row.tolist(),
        }
        for place, row in enumerate(rows)
    ]
    return web.json_response({"object": "list", "data": data[::-1], "model": body["model"]})


def status(number: int, **headers: str) -> Behaviour:
    """Refuse, quoting everything that came, as some servers do."""

    def refuse(_: EmbeddingServer, body: dict[str, Any]) -> web.Response:
        return web.json_response(
            {"error": {"message": f"cannot embed {body['input']}"}}, status=number, headers=headers
        )

    return refuse


def raw(text: str) -> Behaviour:
    return lambda _, __: web.Response(text=text, content_type="application/json")


def when(condition: Callable[[dict[str, Any]], bool], then: Behaviour) -> Behaviour:
    """Do *then* where the request is so, and answer well where it is not."""
    return lambda server, body: (then if condition(body) else good)(server, body)
