"""The explorer as a web server."""

import logging
import secrets
import socket
from collections.abc import Callable

from nicegui import app, ui
from starlette.middleware.gzip import GZipMiddleware

from melbo.errors import MelboError
from melbo.explorer.opened import Opened
from melbo.explorer.steered import Models
from melbo.explorer.web.guard import Guard, is_loopback
from melbo.explorer.web.pages import define_pages


def serve(
    opened: Opened, models: Models, host: str, port: int, ready: Callable[[str], None]
) -> None:
    """Serve the explorer until it is interrupted.

    Args:
        opened: All that is looked at.
        models: Models of runs.
        host: Address that is listened at; where others reach it, a token is needed.
        port: Port that is listened at.
        ready: Called with the address to open, once it can be opened.

    Raises:
        MelboError: The port is taken, or the address is none of this machine's.
    """
    _require_free(host, port)
    token = None if is_loopback(host) else secrets.token_urlsafe(24)
    define_pages(opened, models)
    app.add_middleware(Guard, token=token, cookie=f"melbo-{port}")
    shown = f"[{host}]" if ":" in host else host
    address = f"http://{shown}:{port}/" + (f"?token={token}" if token else "")
    logging.getLogger("uvicorn.error").addFilter(_is_told)
    app.on_startup(lambda: ready(address))
    app.on_shutdown(models.close)
    ui.run(
        host=host,
        port=port,
        title="melbo explore",
        dark=None,
        show=False,
        reload=False,
        show_welcome_message=False,
        binding_refresh_interval=None,
        # most pages go no further than this machine, where packing them takes the longest
        gzip_middleware_factory=lambda inner: GZipMiddleware(inner, compresslevel=1),
        # a tenth of its classes would be used, and it is compiled in the browser at each opening
        tailwind=False,
    )


def _is_told(record: logging.LogRecord) -> bool:
    """Tell whether a message is for the user: not that a tab was closed before it had its page."""
    err = record.exc_info[1] if record.exc_info else None
    return not (isinstance(err, RuntimeError) and str(err) == "No response returned.")


def _require_free(host: str, port: int) -> None:
    """Refuse an address that cannot be listened at.

    Raises:
        MelboError: There is such a fault.
    """
    try:
        family = socket.getaddrinfo(host, port)[0][0]
        with socket.socket(family) as trial:
            trial.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            trial.bind((host, port))
    except OSError as err:
        raise MelboError(
            f"cannot listen at {host}:{port} ({err.strerror}): give another --host or --port"
        ) from err
