"""A door before the explorer: who may come in, and from where."""

import ipaddress
import secrets
from collections.abc import Mapping
from http.cookies import CookieError, SimpleCookie
from typing import Any
from urllib.parse import parse_qs, urlencode, urlsplit

_LOOPBACK = {"localhost", "127.0.0.1", "::1"}


def is_loopback(host: str) -> bool:
    """Tell whether only this machine reaches a host.

    Args:
        host: Name or address.
    """
    try:
        return host == "localhost" or ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


class Guard:
    """ASGI middleware that turns strangers away, from pages and from WebSockets.

    Without a token, only requests by a name of this machine itself pass, so that a page elsewhere
    cannot give its own name this address. With one, only those pass that bring it: in the address
    the first time, then in a cookie. In both cases a page of another origin may not connect.

    Args:
        app: The application behind it.
        token: The token; None where only this machine reaches the explorer.
        cookie: Name of the cookie.
    """

    def __init__(self, app: Any, token: str | None, cookie: str) -> None:
        self._app, self._token, self._cookie = app, token, cookie

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Let a request pass, turn it away, or give it its cookie."""
        if scope["type"] not in ("http", "websocket"):
            await self._app(scope, receive, send)
            return
        headers = {
            key.decode("latin-1"): value.decode("latin-1") for key, value in scope["headers"]
        }
        query = parse_qs(scope.get("query_string", b"").decode("latin-1"))
        given = query.pop("token", [""])[0]
        if not self._same_origin(headers):
            await _refuse(scope, send, "this page was asked for from elsewhere")
        elif self._token is None or self._knows(self._in_cookie(headers)):
            await self._app(scope, receive, send)
        elif scope["type"] == "http" and self._knows(given):
            path = "/" + scope["path"].lstrip("/")
            rest = f"{path}?{urlencode(query, doseq=True)}".rstrip("?")
            cookie = f"{self._cookie}={self._token}; HttpOnly; SameSite=Strict; Path=/"
            told = [(b"location", rest.encode()), (b"set-cookie", cookie.encode())]
            await _answer(send, 303, told, b"")
        else:
            message = "open the address that melbo explore has printed, with its token"
            await _refuse(scope, send, message)

    def _same_origin(self, headers: Mapping[str, str]) -> bool:
        host, origin = headers.get("host", ""), headers.get("origin")
        if self._token is None and urlsplit(f"//{host}").hostname not in _LOOPBACK:
            return False
        return origin is None or urlsplit(origin).netloc == host

    def _knows(self, token: str) -> bool:
        wanted = (self._token or "").encode()
        return secrets.compare_digest(token.encode("utf-8", "replace"), wanted)

    def _in_cookie(self, headers: Mapping[str, str]) -> str:
        try:
            cookie = SimpleCookie(headers.get("cookie", "")).get(self._cookie)
        except CookieError:
            return ""
        return "" if cookie is None else cookie.value


async def _refuse(scope: Any, send: Any, message: str) -> None:
    """Turn a request away."""
    if scope["type"] == "websocket":
        await send({"type": "websocket.close", "code": 1008})
        return
    told = [(b"content-type", b"text/plain; charset=utf-8")]
    await _answer(send, 403, told, message.encode())


async def _answer(
    send: Any, status: int, headers: list[tuple[bytes, bytes]], content: bytes
) -> None:
    """Answer a request."""
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": content})
