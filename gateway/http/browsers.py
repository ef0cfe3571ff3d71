"""What a web page may have a browser ask of the gateway: nothing, unless the registry names the page's origin.

A page of anybody's can send requests to a server on the same machine. Browsers mark these as cross-origin, in `Origin`
or `Sec-Fetch-Site`, unless the page's own name has been made to resolve to this machine (DNS rebinding): then `Host` is
that name.
"""

from __future__ import annotations

from ipaddress import ip_address

from aiohttp import hdrs, web
from multidict import istr

from config.errors import RequestError
from config.registry import GatewayConfig
from gateway.routing import DEVICE_HEADER, WORKER_HEADER

ANY = "*"
_JSON = "application/json"
_SITE = istr("Sec-Fetch-Site")
_OWN = ("same-origin", "none")
"""`none`: the user typed the address."""
_KNOWN = 256
_PREFLIGHT_SECONDS = "600"
_EXPOSED = f"{WORKER_HEADER}, {DEVICE_HEADER}, Retry-After"


class Browsers:
    def __init__(self, config: GatewayConfig) -> None:
        self._origins = frozenset(it.rstrip("/").lower() for it in config.allowed_origins)
        self._hosts = frozenset(it.lower() for it in config.allowed_hosts)
        self._known: set[str] = set()
        """Host headers that were found to be fine."""
        self._local = is_loopback(config.host) and ANY not in self._hosts

    def watch(self, app: web.Application) -> None:
        """Have answers say that pages of allowed origins may read them."""
        if self._origins:
            app.on_response_prepare.append(self._let_read)

    def check(self, request: web.Request) -> web.Response | None:
        """The answer to a preflight; None if the request may go on.

        Raises:
            RequestError: 403 or 415; it comes from a page that may not ask, or may not ask like this.
        """
        headers = request.headers
        host = headers.get(hdrs.HOST, "")
        if self._local and host not in self._known:
            self._check_host(host)
        origin, site = headers.get(hdrs.ORIGIN), headers.get(_SITE)
        if (origin is None and site is None) or _is_own(origin, site, host):
            return None
        preflight = request.method == hdrs.METH_OPTIONS and hdrs.ACCESS_CONTROL_REQUEST_METHOD in headers
        if request.method == hdrs.METH_POST and request.content_type != _JSON:
            message = f"A request from another origin must be {_JSON}."
            raise RequestError(415, message, code="unsupported_media_type")
        if not self._allows(origin):
            message = f"Requests from the origin {origin or 'of another site'} are not in gateway.allowed_origins."
            raise RequestError(403, message, code="origin_not_allowed")
        return _preflight(headers.get(hdrs.ACCESS_CONTROL_REQUEST_HEADERS, "")) if preflight else None

    def _check_host(self, host: str) -> None:
        """Browsers always send a host; programs that send none may go on."""
        name = _name(host)
        if is_loopback(name) or not name or not self._hosts.isdisjoint((name, host.lower())):
            if len(self._known) < _KNOWN:
                self._known.add(host)
            return
        message = f"The host {name} is not in gateway.allowed_hosts; this gateway is for its own machine."
        raise RequestError(403, message, code="host_not_allowed")

    def _allows(self, origin: str | None) -> bool:
        return ANY in self._origins or (origin is not None and origin.lower() in self._origins)

    async def _let_read(self, request: web.Request, response: web.StreamResponse) -> None:
        origin = request.headers.get(hdrs.ORIGIN)
        if origin is not None and self._allows(origin):
            response.headers[hdrs.ACCESS_CONTROL_ALLOW_ORIGIN] = origin
            response.headers[hdrs.ACCESS_CONTROL_EXPOSE_HEADERS] = _EXPOSED
            response.headers[hdrs.VARY] = hdrs.ORIGIN


def is_loopback(name: str) -> bool:
    """Whether only this machine can be meant by a host's name or address."""
    name = name.strip("[]").rstrip(".").lower()
    if name == "localhost" or name.endswith(".localhost"):
        return True
    try:
        return ip_address(name).is_loopback
    except ValueError:
        return False


def _is_own(origin: str | None, site: str | None, host: str) -> bool:
    """Whether a browser says that the page came from here."""
    if site is not None:
        return site.lower() in _OWN
    return origin is not None and origin.partition("://")[2].lower() == host.lower()


def _name(host: str) -> str:
    """Of a Host header: without its port."""
    name, _, port = host.rpartition(":")
    return (name if port.isdecimal() and name else host).rstrip(".").lower()


def _preflight(wanted: str) -> web.Response:
    return web.Response(
        status=204,
        headers={
            hdrs.ACCESS_CONTROL_ALLOW_METHODS: "GET, POST",
            hdrs.ACCESS_CONTROL_ALLOW_HEADERS: wanted,
            hdrs.ACCESS_CONTROL_MAX_AGE: _PREFLIGHT_SECONDS,
            "Access-Control-Allow-Private-Network": "true",
        },
    )
