"""Vectors of texts from any OpenAI-compatible embeddings endpoint: the one place where memories are sent elsewhere.

A search that asks for the vector of its query never waits long: what comes too late serves the next one.
"""

from __future__ import annotations

import asyncio
import hashlib
import importlib
import logging
import time
from collections import OrderedDict
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from memory.embedding.vectors import UnusableAnswerError, dimension_of, read_answer
from memory.errors import BackendUnavailableError, ConfigError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from types import ModuleType

log = logging.getLogger(__name__)

_NAME = "the embeddings endpoint"
_CANARY = "memory"
_LOOPBACK = frozenset({"127.0.0.1", "localhost", "::1"})
_REFUSED = frozenset({400, 413, 422})
_SHORTENED = (2_000, 500)
_BYTES_A_NUMBER = 32
_NUMBERS_MOST = 10_000
_BYTES_AROUND = 100_000
_ASSUMED_DIMENSION = 8_192
_QUERIES_KEPT = 256
_QUERIES_UNDER_WAY = 4
_AFTER_FAILURE_S = 5.0


@dataclass(frozen=True, slots=True)
class EndpointSettings:
    """Where the model is.

    Attributes:
        key: empty for servers that need none.
        dimensions: what the model is asked to shorten its vectors to; 0: nothing is asked.
        batch: texts in one request.
        timeout_s: the longest that one request takes, with its retries.
        retries: how often a 429, a 5xx or a lost connection is tried again, after what Retry-After says.
        query_prefix, text_prefix: what some models want before a question and before a text.
    """

    base_url: str
    model: str
    key: str = field(default="", repr=False)
    dimensions: int = 0
    batch: int = 32
    timeout_s: float = 30.0
    retries: int = 2
    query_prefix: str = ""
    text_prefix: str = ""


class EndpointEmbedder:
    """The model behind an address. The client library is imported at `open`, in a thread; nothing is sent then."""

    def __init__(self, settings: EndpointSettings, *, now: Callable[[], float] = time.monotonic) -> None:
        self.settings = settings
        self.dimension = 0
        """Numbers of a vector; 0 until the first answer."""
        self.trouble = ""
        """Why there was no vector the last time, fit for a status line; empty if there was one."""
        self._now = now
        self._client: Any = None
        self._openai: ModuleType | None = None
        self._opening = asyncio.Lock()
        self._format = "base64"
        self._kept: OrderedDict[str, bytes] = OrderedDict()
        self._asked: dict[str, asyncio.Task[bytes]] = {}
        self._not_before = 0.0

    @property
    def where(self) -> str:
        """The address, for people: without a password that may stand in it."""
        parts = urlsplit(self.settings.base_url)
        return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"

    @property
    def model_id(self) -> str:
        """What vectors may be compared with each other: those of one id. Empty until the first answer."""
        if not self.dimension:
            return ""
        prefix = self.settings.text_prefix
        mark = f" {hashlib.blake2b(prefix.encode(), digest_size=4).hexdigest()}" if prefix else ""
        return f"{self.where} {self.settings.model} {self.dimension}{mark}"

    async def open(self) -> None:
        """Make ready; safe to repeat.

        Raises:
            ConfigError: the key or the address is none.
        """
        async with self._opening:
            if self._client is None:
                if not self.settings.key.isascii():
                    raise ConfigError("memory.recall.api_key_env: the key holds characters that no key has")
                try:
                    self._client = await asyncio.to_thread(self._make_client)
                except Exception as exc:  # whatever the library makes of an address or a proxy
                    raise ConfigError(f"memory.recall.base_url: cannot be used ({type(exc).__name__})") from exc
                self._warn_in_the_clear()

    async def close(self) -> None:
        """End what is under way and let go of the connections; safe to repeat."""
        asked = list(self._asked.values())
        for task in asked:
            task.cancel()
        await asyncio.gather(*asked, return_exceptions=True)
        client, self._client = self._client, None
        if client is not None:
            await client.close()

    async def texts(self, texts: Sequence[str]) -> list[bytes]:
        """Return the vector of each of *texts*; an empty one where the model has none for this text, now or later.

        Raises:
            BackendUnavailableError: no answer, or one that makes no sense; try again later.
            ConfigError: it will never answer with these settings.
        """
        await self.open()
        vectors: list[bytes] = []
        while len(vectors) < len(texts):
            batch = texts[len(vectors) : len(vectors) + self._batch_size()]
            try:
                vectors += await self._batch([self.settings.text_prefix + text for text in batch])
            except (BackendUnavailableError, ConfigError) as exc:
                self.trouble = why(exc)
                raise
        self.trouble = ""
        return vectors

    async def query(self, text: str, deadline_s: float) -> bytes:
        """Return the vector of *text*; an empty one if there is none within *deadline_s*: then `trouble` says why.

        Never raises. What comes late is kept for the next time, and an endpoint that has just failed is not waited for.
        """
        if not text.strip():
            return b""
        known = self._kept.get(text)
        if known is not None:
            self._kept.move_to_end(text)
            return known
        task = self._asked.get(text)
        if task is None:
            if self._now() < self._not_before:
                return b""
            if len(self._asked) >= _QUERIES_UNDER_WAY:
                self.trouble = f"{self.where} is slow"
                return b""
            task = self._asked[text] = asyncio.create_task(self._find(text))
        done, _ = await asyncio.wait({task}, timeout=deadline_s)
        if not done:
            self.trouble = f"{self.where} is slow"
        return b"" if not done or task.cancelled() else task.result()

    async def _find(self, text: str) -> bytes:
        try:
            await self.open()
            (vector,) = await self._ask([self.settings.query_prefix + text], retries=0)
            self._check_usable(vector)
        except (BackendUnavailableError, ConfigError, _RefusedError) as exc:
            self.trouble = why(exc)
            self._not_before = self._now() + _AFTER_FAILURE_S
            return b""
        finally:
            del self._asked[text]
        self.trouble = ""
        self._kept[text] = vector
        if len(self._kept) > _QUERIES_KEPT:
            self._kept.popitem(last=False)
        return vector

    def _batch_size(self) -> int:
        """Return how many texts go into the next request.

        Numbers written out are read under the interpreter's lock: 50,000 of them held up the client's loop for 20 ms.
        """
        most = self.settings.batch
        return (
            most if self._format == "base64" or not self.dimension else min(most, 1 + _NUMBERS_MOST // self.dimension)
        )

    async def _batch(self, texts: Sequence[str]) -> list[bytes]:
        """Return the vectors of one batch; if it is refused, of its halves, so that one bad text harms no other."""
        try:
            vectors = await self._ask(texts, retries=self.settings.retries)
        except _RefusedError:
            await self._canary()
            if len(texts) > 1:
                half = len(texts) // 2
                return await self._batch(texts[:half]) + await self._batch(texts[half:])
            return [await self._shortened(texts[0])]
        if not all(vectors):
            await self._canary()
        return vectors

    async def _shortened(self, text: str) -> bytes:
        for most in _SHORTENED:
            if len(text) > most:
                try:
                    return (await self._ask([text[:most]], retries=self.settings.retries))[0]
                except _RefusedError:
                    continue
        return b""

    async def _canary(self) -> None:
        """Raise unless the model has a vector for a word: then a refusal is about the text, and not about us."""
        try:
            (vector,) = await self._ask([_CANARY], retries=self.settings.retries)
        except _RefusedError as exc:
            raise BackendUnavailableError(_NAME, "embed", str(exc)) from exc
        self._check_usable(vector)

    def _check_usable(self, vector: bytes) -> None:
        if not vector:
            raise BackendUnavailableError(_NAME, "embed", f"{self.where} gives vectors without a direction")

    async def _ask(self, texts: Sequence[str], *, retries: int) -> list[bytes]:
        """Return what the endpoint says in one request.

        Raises:
            _RefusedError: it does not want these texts.
            BackendUnavailableError, ConfigError: see `texts`.
        """
        # A lone surrogate is no JSON.
        said = [text.encode(errors="replace").decode() for text in texts]
        try:
            async with asyncio.timeout(self.settings.timeout_s):
                try:
                    body = await self._post(said, retries)
                except Exception as exc:  # sorted below
                    if getattr(exc, "status_code", None) not in _REFUSED or self.dimension:
                        raise
                    body = await self._post(said, retries, "float")  # some servers know no other form
                    self._format = "float"
                vectors = await asyncio.to_thread(read_answer, body, len(said))
        except TimeoutError as exc:
            reason = f"{self.where} did not answer within {self.settings.timeout_s:g} s"
            raise BackendUnavailableError(_NAME, "embed", reason) from exc
        except UnusableAnswerError as exc:
            raise BackendUnavailableError(_NAME, "embed", f"the answer of {self.where} {exc}") from exc
        except (BackendUnavailableError, ConfigError):
            raise
        except Exception as exc:  # noqa: BLE001 - whatever a server makes the library raise
            raise self._error(exc) from None  # a traceback would quote the server, which may quote the texts
        self._check_dimension(vectors)
        return vectors

    async def _post(self, texts: Sequence[str], retries: int, form: str = "") -> bytes:
        client = self._client
        if client is None:
            raise BackendUnavailableError(_NAME, "embed", "it is closed")
        options: dict[str, Any] = {"dimensions": self.settings.dimensions} if self.settings.dimensions else {}
        create = client.with_options(max_retries=retries).embeddings.with_streaming_response.create
        most = len(texts) * (self.dimension or _ASSUMED_DIMENSION) * _BYTES_A_NUMBER + _BYTES_AROUND
        body = bytearray()
        asked = create(model=self.settings.model, input=list(texts), encoding_format=form or self._format, **options)
        async with asked as response:
            async for piece in response.iter_bytes():
                body += piece
                if len(body) > most:
                    raise UnusableAnswerError(f"is too long (limit: {most:,} bytes for {len(texts)} texts)")
        return bytes(body)

    def _check_dimension(self, vectors: Sequence[bytes]) -> None:
        """Learn the dimension from the first answer. A server that changes it later has changed its model."""
        found = max(map(dimension_of, vectors), default=0)
        wanted = self.dimension or self.settings.dimensions
        if found and wanted and found != wanted:
            reason = f"{self.where} gives vectors of {found} numbers where {wanted} were expected"
            raise BackendUnavailableError(_NAME, "embed", reason)
        self.dimension = self.dimension or found

    def _make_client(self) -> Any:
        self._openai = importlib.import_module("openai")
        # No proxy stands between us and ourselves; and memories go to the address that was named, to no other.
        trust_env = urlsplit(self.settings.base_url).hostname not in _LOOPBACK
        http = self._openai.DefaultAsyncHttpxClient(trust_env=trust_env, follow_redirects=False)
        return self._openai.AsyncOpenAI(
            base_url=self.settings.base_url,
            api_key=self.settings.key or "none",  # the library insists on one
            http_client=http,
        )

    def _warn_in_the_clear(self) -> None:
        parts = urlsplit(self.settings.base_url)
        if parts.scheme != "https" and parts.hostname not in _LOOPBACK:
            extra = {"event": "embedding_in_the_clear"}
            log.warning("All memories go to %s unencrypted, to be embedded; use https", self.where, extra=extra)

    def _error(self, exc: Exception) -> Exception:
        """Return what *exc* means, without what the server said: that may quote the texts."""
        status = getattr(exc, "status_code", None)
        where = self.where
        if status in {401, 403}:
            return ConfigError(f"memory.recall.api_key_env: {where} refused the key ({status})")
        if status == 404:
            model = self.settings.model
            return ConfigError(f"memory.recall.model: {where} knows no model {model!r}, or is no such address (404)")
        if status in _REFUSED:
            return _RefusedError(f"{where} refused what it was asked ({status})")
        if status == 429:
            reason = f"{where} has had enough of us for now (429)"
        elif isinstance(status, int):
            reason = f"{where} answered with status {status}"
        elif self._openai is not None and isinstance(exc, self._openai.APIConnectionError):
            reason = f"{where} cannot be reached"
        else:
            reason = f"the answer of {where} makes no sense ({type(exc).__name__})"
        return BackendUnavailableError(_NAME, "embed", reason)


def why(exc: Exception) -> str:
    """Return what is wrong in words for a status line, which names the part that it is about by itself."""
    return exc.reason if isinstance(exc, BackendUnavailableError) else str(exc)


class _RefusedError(Exception):
    """The endpoint does not want these very texts, or this very request."""
