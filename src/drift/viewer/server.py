"""The viewer's server: on this machine alone, for those who have its address, and for reading alone."""

from __future__ import annotations

import hashlib
import secrets
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from importlib.resources import files
from pathlib import Path

from drift.errors import ConfigError, DriftError, StorageError
from drift.event_loop import run_to_end
from drift.reporting.facts import read_facts
from drift.reporting.page import render
from drift.terminal import tell
from drift.viewer.library import Library
from drift.viewer.pages import Pages

try:
    import uvicorn
    from starlette.applications import Starlette
    from starlette.datastructures import Headers, MutableHeaders
    from starlette.requests import Request
    from starlette.responses import PlainTextResponse, Response
    from starlette.routing import Route
    from starlette.types import ASGIApp, Message, Receive, Scope, Send
except ImportError as error:
    raise ConfigError("drift view needs starlette and uvicorn. Install them: pip install 'drift-rl[view]'.") from error

HOST = "127.0.0.1"
_HOSTS = {"127.0.0.1", "localhost", "[::1]"}
_HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src data:; "
        "form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
    ),
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
}
# The report draws with styles in its own text; it may do nothing else.
_REPORT_POLICY = "sandbox; default-src 'none'; style-src 'unsafe-inline'; img-src data:; frame-ancestors 'none'"


class Guard:
    """Lets through what asks to read, by the name of this machine, below the token.

    Args:
        app: what answers, below ``/TOKEN``.
        token: the first part of every path; whoever has the address has it, and nobody else.
    """

    def __init__(self, app: ASGIApp, token: str) -> None:
        self._app, self._token = app, token

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer, or refuse; see ASGI."""
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return

        async def sealed(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in _HEADERS.items():
                    headers.setdefault(name, value)
            await send(message)

        # Another name that leads here (DNS rebinding) is another origin's page asking.
        host = Headers(scope=scope).get("host", "").rpartition(":")
        name = host[0] if host[2].isdigit() else "".join(host)
        first = scope["path"].split("/", 2)[1:2]
        if scope["type"] != "http" or name not in _HOSTS:
            refused = PlainTextResponse("This name is not the viewer's. Use the address that it printed.", 421)
        elif not first or not secrets.compare_digest(first[0].encode(), self._token.encode()):
            refused = PlainTextResponse("No such page. Use the address that drift view printed, whole.", 404)
        elif scope["method"] not in ("GET", "HEAD"):
            refused = PlainTextResponse("The viewer only shows.", 405)
        else:
            await self._app(scope, receive, sealed)
            return
        if scope["type"] == "http":
            await refused(scope, receive, sealed)
        else:
            await send({"type": "websocket.close"})


def make_app(library: Library, token: str, *, model: str = "") -> ASGIApp:
    """The application that answers below ``/token/``."""
    pages = Pages(library, model=model)

    def answers(make: Callable[[dict[str, str]], str]) -> Callable[[Request], Response]:
        def answer(request: Request) -> Response:
            status = 200
            try:
                page = make(dict(request.query_params))
            except DriftError as error:
                status, page = 404, pages.problem(str(error))
            except (OSError, KeyError, TypeError, ValueError) as error:
                words = f"What this page shows is damaged ({type(error).__name__}: {error}); drift check says more."
                status, page = 404, pages.problem(words)
            body = page.encode("utf-8", errors="replace")
            tag = f'"{hashlib.blake2b(body, digest_size=12).hexdigest()}"'
            if status == 200 and request.headers.get("if-none-match") == tag:
                return Response(status_code=304, headers={"ETag": tag})
            return Response(body, status, {"ETag": tag}, "text/html; charset=utf-8")

        return answer

    def report(request: Request) -> Response:
        try:
            page = render(read_facts(library.root))
        except (DriftError, OSError, KeyError, ValueError) as error:
            return Response(pages.problem(f"There is no report: {error}"), 404, media_type="text/html")
        headers = {"Content-Security-Policy": _REPORT_POLICY}
        return Response(page.encode("utf-8", errors="replace"), headers=headers, media_type="text/html")

    def static(name: str, kind: str) -> Callable[[Request], Response]:
        body = files("drift.viewer").joinpath(f"static/{name}").read_bytes()
        return lambda request: Response(body, media_type=kind)

    routes = {
        "": answers(pages.run),
        "list": answers(pages.conversations),
        "conversation": answers(pages.conversation),
        "tree": answers(pages.tree),
        "compare": answers(pages.compare),
        "report": report,
        "viewer.css": static("viewer.css", "text/css"),
        "viewer.js": static("viewer.js", "text/javascript"),
    }
    return Guard(Starlette(routes=[Route(f"/{token}/{path}", made) for path, made in routes.items()]), token)


def serve(root: Path, *, port: int = 0, model: str = "") -> None:
    """Show ``root`` until Ctrl-C, at an address that is printed.

    Raises:
        DatasetError: there is nothing in ``root``.
        StorageError: the port is taken.
    """
    library, token = Library(root), secrets.token_urlsafe(16)
    listener = socket.socket()
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((HOST, port))
        listener.listen()
    except OSError as error:
        raise StorageError(
            f"port {port} of {HOST} can't be had: {error.strerror}. Give another --port, or none."
        ) from error
    server = uvicorn.Server(
        uvicorn.Config(make_app(library, token, model=model), access_log=False, log_level="warning")
    )
    # The first page is there at once: what it shows is read before its address is said.
    with suppress(DriftError):
        library.find({}, patience=0)
    threading.Thread(target=library.read_ahead, name="drift-read-ahead", daemon=True).start()
    tell(f"{root}: http://{HOST}:{listener.getsockname()[1]}/{token}/   (Ctrl-C ends it)")
    with _ended_by_hangup(server), suppress(KeyboardInterrupt):
        run_to_end(server.serve(sockets=[listener]))


@contextmanager
def _ended_by_hangup(server: uvicorn.Server) -> Iterator[None]:
    """SIGHUP ends the server in order, as uvicorn has Ctrl-C and SIGTERM do, unless it was to be ignored."""
    before = signal.getsignal(signal.SIGHUP)
    if before in (signal.SIG_IGN, None) or threading.current_thread() is not threading.main_thread():
        yield
        return
    signal.signal(signal.SIGHUP, server.handle_exit)
    try:
        yield
    finally:
        signal.signal(signal.SIGHUP, before)
