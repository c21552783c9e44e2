"""The HTTP port's door: every request passes it before anything else looks at it."""

from __future__ import annotations

from urllib.parse import urlsplit

from aiohttp import web
from aiohttp.typedefs import Handler, Middleware

from bridge.network.access import AccessPolicy

#: The cookie that holds the token once it was shown, and for how long, in seconds.
COOKIE, LASTS = "phosphene_token", 30 * 86400
#: What may be read without a token: nothing private is in it.
OPEN = ("/health", "/metrics")


def guard(doors: AccessPolicy) -> Middleware:
    """Refuses other networks, other names for this machine, other sites' pages, and, once the show is exposed, those without the token.

    Without it only the parameters' tree may be read, as OSCQuery's clients do, and ``/health`` and ``/metrics``.
    """

    @web.middleware
    async def check(request: web.Request, handler: Handler) -> web.StreamResponse:
        address = request.remote or ""
        if not doors.admits(address):
            return web.Response(status=403, text="this network is not let in; see --allow of `phosphene run`")
        if not doors.is_known_host(urlsplit(f"//{request.host}").hostname or ""):
            return web.Response(status=403, text="this machine is not called so")
        origin = request.headers.get("Origin")
        if origin is not None and urlsplit(origin).netloc != request.host:
            return web.Response(status=403, text="this page belongs to another site")
        shown = request.query.get("token", "")
        trusted = doors.trusts(address, shown or request.cookies.get(COOKIE, "") or _bearer(request))
        request["trusted"] = trusted
        if not trusted and not _readable(request):
            return web.Response(
                status=401, text="the panel needs its token: open the address that `phosphene run` printed"
            )
        if trusted and shown:
            there = web.HTTPSeeOther(request.path)
            there.set_cookie(COOKIE, shown, max_age=LASTS, httponly=True, samesite="Strict")
            return there
        return await handler(request)

    return check


def _readable(request: web.Request) -> bool:
    """Whether a request only reads what everyone may read."""
    if request.headers.get("Upgrade", "").lower() == "websocket":
        return request.path == "/"
    if request.method not in ("GET", "HEAD"):
        return False
    if request.path in OPEN:
        return True
    page = request.path == "/" and "text/html" in request.headers.get("Accept", "") and not request.query_string
    return (
        not page
        and "token" not in request.query
        and not request.path.endswith((".json", ".jpg", ".mjpg", ".css", ".js"))
        and request.path != "/panel"
    )


def _bearer(request: web.Request) -> str:
    kind, _, token = request.headers.get("Authorization", "").partition(" ")
    return token.strip() if kind.lower() == "bearer" else ""
