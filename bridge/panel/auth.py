"""Access rules of the HTTP port: a middleware that checks every request before its handler runs."""

from __future__ import annotations

import contextlib
from http.cookies import CookieError
from urllib.parse import urlsplit

from aiohttp import web
from aiohttp.typedefs import Handler, Middleware

from bridge.network.access import AccessPolicy

#: The cookie that stores the token once a URL has brought it, and its lifetime.
COOKIE, COOKIE_SECONDS = "phosphene_token", 30 * 86400
#: Paths that are readable without the token, because they contain nothing private.
PUBLIC_PATHS = ("/health", "/metrics")
#: Endings of paths that are readable with the token alone: the panel's files and images.
PRIVATE_ENDINGS = (".json", ".jpg", ".mjpg", ".css", ".js")
#: Headers of every answer: no other site shows the panel in a frame, and none is sent the token in a URL.
SECURITY_HEADERS = {
    "Content-Security-Policy": "frame-ancestors 'self'",
    "X-Frame-Options": "SAMEORIGIN",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
}


async def add_security_headers(_request: web.Request, response: web.StreamResponse) -> None:
    """Add the headers of every answer before it is sent."""
    response.headers.update(SECURITY_HEADERS)


def build_middleware(access: AccessPolicy) -> Middleware:
    """Return a middleware that rejects other networks, unknown host names, cross-site requests and missing tokens.

    The token is only required of other machines. Without it they can still read the parameter tree, as OSCQuery
    clients do, ``/health`` and ``/metrics``.
    """

    def find_rejection(request: web.Request) -> web.Response | None:
        """Return why a request is rejected, None where it is admitted. Raises ValueError for a malformed one."""
        address = request.remote or ""
        if not access.admits(address):
            return _reject(403, "Your network is not allowed; see --allow of `phosphene run`")
        # Browsers always send one. Without it the library would ask the name service, and hold everybody up meanwhile.
        hosts = request.headers.getall("Host", [])
        if len(hosts) > 1:
            return _reject(400, "Malformed request")
        if hosts and not access.is_known_host(urlsplit(f"//{hosts[0]}").hostname or ""):
            return _reject(403, "Unknown Host header: open the panel by IP address or host name")
        origin = request.headers.get("Origin")
        if origin is not None and [urlsplit(origin).netloc] != hosts:
            return _reject(403, "Cross-site request rejected")
        query_token = request.query.get("token", "")
        trusted = access.trusts(address, query_token or _cookie_token(request) or _bearer_token(request))
        request["trusted"] = trusted
        if not trusted and not _is_public(request):
            return _reject(401, "The panel needs its token: open the address that `phosphene run` printed")
        if trusted and query_token:
            path = "/" + request.rel_url.raw_path.lstrip("/")  # two slashes would lead to another site
            redirect = web.Response(status=303, headers={"Location": path})
            redirect.set_cookie(COOKIE, query_token, max_age=COOKIE_SECONDS, httponly=True, samesite="Strict")
            return redirect
        return None

    @web.middleware
    async def check(request: web.Request, handler: Handler) -> web.StreamResponse:
        try:
            rejection = find_rejection(request)
        except Exception:  # headers hold whatever a stranger writes
            return _reject(400, "Malformed request")
        return await handler(request) if rejection is None else rejection

    return check


def _reject(status: int, text: str) -> web.Response:
    return web.Response(status=status, text=text)


def _is_public(request: web.Request) -> bool:
    """Return whether a request only reads what needs no token."""
    if request.headers.get("Upgrade", "").lower() == "websocket":
        return request.path == "/"
    if request.method not in ("GET", "HEAD"):
        return False
    if request.path in PUBLIC_PATHS:
        return True
    is_page = request.path == "/" and "text/html" in request.headers.get("Accept", "") and not request.query_string
    is_private = request.path == "/panel" or request.path.endswith(PRIVATE_ENDINGS)
    return not is_page and not is_private and "token" not in request.query


def _cookie_token(request: web.Request) -> str:
    with contextlib.suppress(CookieError, ValueError):
        return request.cookies.get(COOKIE, "")
    return ""


def _bearer_token(request: web.Request) -> str:
    kind, _, token = request.headers.get("Authorization", "").partition(" ")
    return token.strip() if kind.lower() == "bearer" else ""
