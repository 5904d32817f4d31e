import asyncio

import pytest

from melbo.explorer.web.guard import Guard, is_loopback

TOKEN = "a-long-token"


async def app(scope, receive, send):
    await send({"type": "passed"})


def sent(token, path="/run", query="", kind="http", **headers):
    """Messages that a request brings about."""
    found = []

    async def send(message):
        found.append(message)

    scope = {
        "type": kind,
        "path": path,
        "query_string": query.encode(),
        "headers": [
            (k.encode(), v.encode()) for k, v in ({"host": "localhost:1"} | headers).items()
        ],
    }
    asyncio.run(Guard(app, token, "melbo-1")(scope, None, send))
    return found


def passes(*args, **more):
    found = sent(*args, **more)
    if found == [{"type": "passed"}]:
        return True
    refused = [m["type"] for m in found] == ["websocket.close"] or found[0]["status"] == 403
    assert refused
    return False


@pytest.mark.parametrize("kind", ["http", "websocket"])
@pytest.mark.parametrize(
    ("headers", "expected"),
    [
        ({}, True),
        ({"host": "127.0.0.1:8765"}, True),
        ({"host": "[::1]:8765"}, True),
        ({"host": "evil.example"}, False),
        ({"host": "127.0.0.1.evil.example:8765"}, False),
        ({"host": ""}, False),
        ({"host": "localhost:1", "origin": "http://localhost:1"}, True),
        ({"host": "localhost:1", "origin": "http://localhost:2"}, False),
        ({"host": "localhost:1", "origin": "http://evil.example"}, False),
        ({"host": "localhost:1", "origin": "null"}, False),
    ],
)
def test_only_this_machine_itself_comes_in(kind, headers, expected):
    assert passes(None, kind=kind, **headers) is expected


@pytest.mark.parametrize("kind", ["http", "websocket"])
@pytest.mark.parametrize(
    ("headers", "expected"),
    [
        ({}, False),
        ({"cookie": "melbo-1=another"}, False),
        ({"cookie": "melbo-2=a-long-token"}, False),
        ({"cookie": "melbo-1="}, False),
        ({"cookie": "x=1; melbo-1=a-long-token"}, True),
        ({"cookie": "melbo-1=a-long-token", "host": "any.example"}, True),
        ({"cookie": "melbo-1=a-long-token", "origin": "http://evil.example"}, False),
    ],
)
def test_others_need_the_token(kind, headers, expected):
    assert passes(TOKEN, kind=kind, **headers) is expected


def test_the_token_of_the_address_becomes_a_cookie():
    start, _ = sent(TOKEN, path="/run", query="token=a-long-token&name=a+b")
    headers = dict(start["headers"])
    assert start["status"] == 303
    assert headers[b"location"] == b"/run?name=a+b"
    cookie = headers[b"set-cookie"].decode()
    assert cookie.startswith("melbo-1=a-long-token; ")
    assert {"HttpOnly", "SameSite=Strict"} <= set(cookie.split("; "))
    assert passes(TOKEN, cookie=cookie.partition(";")[0])


@pytest.mark.parametrize("query", ["token=", "token=wrong", "token=%ff", "name=a-long-token"])
def test_a_wrong_token_opens_nothing(query):
    assert not passes(TOKEN, query=query)


def test_a_websocket_takes_no_token_from_its_address():
    assert not passes(TOKEN, kind="websocket", query="token=a-long-token")


def test_a_redirect_stays_here():
    start, _ = sent(TOKEN, path="//evil.example/", query="token=a-long-token")
    assert dict(start["headers"])[b"location"] == b"/evil.example/"


@pytest.mark.parametrize(
    ("host", "expected"),
    [
        ("127.0.0.1", True),
        ("127.3.2.1", True),
        ("::1", True),
        ("localhost", True),
        ("0.0.0.0", False),
        ("::", False),
        ("192.168.1.2", False),
        ("example.org", False),
    ],
)
def test_what_is_loopback(host, expected):
    assert is_loopback(host) is expected
