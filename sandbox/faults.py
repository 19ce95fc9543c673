"""Scripted faults: what a bot must live through, on demand. The parts that misbehave own the knobs."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sandbox.gateway import INVALID_SESSION, RECONNECT
from sandbox.rest import RestFault

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from sandbox.gateway import Gateway
    from sandbox.rest import Rest
    from sandbox.world import World


class Faults:
    """`discord.faults`. Each takes effect at once, and stays unless it counts down."""

    def __init__(
        self,
        world: World,
        gateway: Gateway,
        rest: Rest,
        *,
        stop_listening: Callable[[], Awaitable[None]],
        listen: Callable[[], Awaitable[None]],
    ) -> None:
        self._world = world
        self._gateway = gateway
        self._rest = rest
        self._stop_listening = stop_listening
        self._listen = listen

    def drop_gateway(self) -> None:
        """Cut the TCP connection of every websocket."""
        self._gateway.drop()

    def close_gateway(self, code: int) -> None:
        """Close every websocket with *code*, such as 1000, 1001, 4000 or 4004."""
        self._gateway.close(code)

    def ask_to_reconnect(self) -> None:
        """Op 7."""
        self._gateway.command({"op": RECONNECT, "d": None})

    def invalidate_session(self, *, resumable: bool) -> None:
        """Op 9. Not resumable: every session is forgotten, the client has to identify afresh."""
        self._gateway.command({"op": INVALID_SESSION, "d": resumable})

    def refuse_resume(self, times: int = 1) -> None:
        """The next *times* attempts to RESUME are answered with op 9, not resumable."""
        self._gateway.resumes_to_refuse = times

    def fail_rest(
        self,
        status: int,
        *,
        times: int = 1,
        path: str = "",
        method: str | None = None,
        retry_after_s: float = 0.2,
        is_global: bool = False,
    ) -> None:
        """Answer the next *times* requests whose path contains *path* with *status*.

        The request does nothing. *retry_after_s* and *is_global* belong to status 429.
        """
        self._rest.faults.append(
            RestFault(
                status=status,
                times=times,
                path=path,
                method=method,
                retry_after_s=retry_after_s,
                is_global=is_global,
            )
        )

    def reject_token(self, *, rejected: bool = True) -> None:
        """Refuse the token everywhere (REST 401, gateway 4004), or take it again."""
        self._world.token_rejected = rejected

    async def pause(self) -> None:
        """Stop listening and cut every connection: whoever connects is refused until `resume`."""
        await self._stop_listening()

    async def resume(self) -> None:
        """Listen again, on the same port."""
        await self._listen()
