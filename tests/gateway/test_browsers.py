"""What web pages may ask of the gateway, by the headers that browsers send with it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import closing
from http.client import HTTPConnection

import pytest

from gateway.http.browsers import is_loopback
from tests.rig.asking import CHAT, HELLO, Answer, connect
from tests.rig.serving import Prism, simulated

PAGE = "https://chat.example"
EVIL = "http://evil.example"
BODY = json.dumps({"model": "a", "messages": HELLO, "max_tokens": 1}).encode()
PREFLIGHT = {"Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "authorization,content-type"}
ALLOW = "Access-Control-Allow-Origin"


def start(tmp_path_factory: pytest.TempPathFactory, name: str, **gateway: object) -> Iterator[Prism]:
    registry = simulated("a", pool={"engine_args": {"activation": "10ms"}}, gateway=gateway)
    prism = Prism.start(tmp_path_factory.mktemp(name) / "gateway", registry)
    prism.wait_for_workers()
    yield prism
    prism.close()


@pytest.fixture(scope="module")
def closed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Prism]:
    """As it is unless somebody says otherwise."""
    yield from start(tmp_path_factory, "closed")


@pytest.fixture(scope="module")
def opened(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Prism]:
    """Names a page and a name of its own."""
    yield from start(tmp_path_factory, "opened", allowed_origins=[PAGE], allowed_hosts=["prism.example"])


def ask(prism: Prism, method: str, path: str, headers: dict[str, str], body: bytes | None = None) -> Answer:
    """With these headers and no others."""
    with closing(connect(prism)) as connection:
        return send(connection, method, path, headers, body)


def send(connection: HTTPConnection, method: str, path: str, headers: dict[str, str], body: bytes | None) -> Answer:
    connection.putrequest(method, path, skip_host="Host" in headers)
    for name, value in ({"Content-Length": str(len(body))} if body else {}).items():
        connection.putheader(name, value)
    for name, value in headers.items():
        connection.putheader(name, value)
    connection.endheaders(body)
    response = connection.getresponse()
    return Answer(response.status, response.headers, response.read())


def chat(prism: Prism, content_type: str = "application/json", **headers: str) -> Answer:
    sent = {"Content-Type": content_type, **{name.replace("_", "-"): value for name, value in headers.items()}}
    return ask(prism, "POST", CHAT, sent, BODY)


# pages


@pytest.mark.parametrize("origin", [EVIL, PAGE, "null", "http://localhost:1", "https://127.0.0.1"])
def test_a_page_of_another_origin_may_ask_nothing(closed: Prism, origin: str) -> None:
    assert (chat(closed, Origin=origin).status, chat(closed, Origin=origin).error["code"]) == (
        403,
        "origin_not_allowed",
    )
    for path in ("/health", "/metrics", "/v1/models"):
        assert ask(closed, "GET", path, {"Origin": origin}).status == 403


@pytest.mark.parametrize("site", ["cross-site", "same-site"])
def test_nor_may_one_that_sends_no_origin(closed: Prism, site: str) -> None:
    assert chat(closed, Sec_Fetch_Site=site).status == 403
    assert ask(closed, "GET", "/v1/models", {"Sec-Fetch-Site": site}).status == 403


@pytest.mark.parametrize("kind", ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x"])
def test_what_a_form_can_send_is_refused_as_it_is_no_json(opened: Prism, kind: str) -> None:
    for origin in (EVIL, PAGE):
        answer = chat(opened, kind, Origin=origin)
        assert (answer.status, answer.error["code"]) == (415, "unsupported_media_type")


def test_the_gateways_own_pages_may_ask(closed: Prism) -> None:
    assert chat(closed, Origin=closed.url).status == 200
    assert chat(closed, Origin=closed.url, Sec_Fetch_Site="same-origin").status == 200
    assert ask(closed, "GET", "/v1/models", {"Sec-Fetch-Site": "none"}).status == 200


def test_clients_that_are_no_browsers_may_send_what_they_like(closed: Prism) -> None:
    for kind in ("text/plain", "application/x-www-form-urlencoded", "application/json; charset=utf-8"):
        assert chat(closed, kind).status == 200


def test_a_page_that_is_named_may_ask_and_read(opened: Prism) -> None:
    answer = chat(opened, Origin=PAGE, Sec_Fetch_Site="cross-site")
    assert (answer.status, answer.headers[ALLOW], answer.headers["Vary"]) == (200, PAGE, "Origin")
    assert "X-Prism-Worker" in answer.headers["Access-Control-Expose-Headers"]


def test_it_may_read_streams_and_errors_too(opened: Prism) -> None:
    body = json.dumps({"model": "a", "messages": HELLO, "max_tokens": 2, "stream": True}).encode()
    headers = {"Origin": PAGE, "Content-Type": "application/json"}
    stream = ask(opened, "POST", CHAT, headers, body)
    assert (stream.status, stream.headers[ALLOW], len(stream.events)) == (200, PAGE, 4)
    for path in ("/v1/nothing", "/v1/models/nothing"):
        missing = ask(opened, "GET", path, {"Origin": PAGE})
        assert (missing.status, missing.headers[ALLOW]) == (404, PAGE)


def test_its_preflight_is_answered_and_others_are_refused(opened: Prism, closed: Prism) -> None:
    answer = ask(opened, "OPTIONS", CHAT, {"Origin": PAGE, **PREFLIGHT})
    assert (answer.status, answer.headers[ALLOW]) == (204, PAGE)
    assert "POST" in answer.headers["Access-Control-Allow-Methods"]
    assert answer.headers["Access-Control-Allow-Headers"] == "authorization,content-type"
    for prism, origin in ((opened, EVIL), (closed, PAGE)):
        refused = ask(prism, "OPTIONS", CHAT, {"Origin": origin, **PREFLIGHT})
        assert (refused.status, refused.headers[ALLOW]) == (403, None)


def test_a_star_names_every_page(tmp_path_factory: pytest.TempPathFactory) -> None:
    for prism in start(tmp_path_factory, "star", allowed_origins=["*"]):
        assert chat(prism, Origin=EVIL).headers[ALLOW] == EVIL
        assert chat(prism, "text/plain", Origin=EVIL).status == 415


# names


@pytest.mark.parametrize(
    "host", ["evil", "evil.example", "evil.example:8000", "10.0.0.1:8000", "[2001:db8::1]:80", "localhost.evil.example"]
)
def test_a_name_that_may_have_been_made_to_mean_this_machine_is_refused(closed: Prism, host: str) -> None:
    answer = chat(closed, Host=host)
    assert (answer.status, answer.error["code"]) == (403, "host_not_allowed")
    assert ask(closed, "GET", "/health", {"Host": host}).status == 403


@pytest.mark.parametrize(
    "host", ["localhost", "LOCALHOST:99", "127.0.0.1", "127.1.2.3:8000", "[::1]:8000", "a.localhost"]
)
def test_a_name_of_this_machine_is_served(closed: Prism, host: str) -> None:
    assert chat(closed, Host=host).status == 200


def test_so_is_one_that_the_registry_names(opened: Prism) -> None:
    assert chat(opened, Host="prism.example:8000").status == 200
    assert chat(opened, Host="evil.example").status == 403


def test_a_gateway_for_other_machines_is_called_by_any_name(tmp_path_factory: pytest.TempPathFactory) -> None:
    for prism in start(tmp_path_factory, "any", host="0.0.0.0"):
        assert chat(prism, Host="prism.example").status == 200
        assert chat(prism, Origin=EVIL).status == 403


def test_loopback_is_recognised() -> None:
    assert all(map(is_loopback, ("localhost", "localhost.", "127.0.0.2", "::1", "[::1]")))
    assert not any(map(is_loopback, ("0.0.0.0", "::", "", "10.0.0.1", "localhost.example", "host")))
