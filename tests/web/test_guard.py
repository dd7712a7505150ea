"""Who may call: keys, web pages of other origins, and where the server may listen without keys."""

from __future__ import annotations

import socket

import pytest
from flask.testing import FlaskClient

from tests.web.conftest import bare_app
from tests.web.test_transcribe import RecordingBody
from whisperlib.errors import OptionError
from whisperlib.settings import Settings
from whisperlib.web import guard

ANY = "0.0.0.0"  # noqa: S104  (nothing listens here)
ORIGIN = "https://app.example"
PREFLIGHT = {"Origin": ORIGIN, "Access-Control-Request-Method": "POST"}
CORS = "Access-Control-"


def client_of(**settings: str) -> FlaskClient:
    return bare_app(**settings).test_client()


def status_of(client: FlaskClient, path: str = "/v1/models", **headers: str) -> int:
    """Return the status; 503 is the application's answer while no model is loaded, so the key was taken."""
    return client.get(path, headers={name.replace("_", "-"): value for name, value in headers.items()}).status_code


@pytest.mark.parametrize("keys", [(), "none", "NONE"])
def test_without_keys_everybody_is_served(keys: str) -> None:
    assert status_of(client_of(api_keys=keys)) == 503
    assert status_of(client_of(api_keys=keys), Authorization="Bearer whatever") == 503


@pytest.mark.parametrize("key", ["first", "second"])
def test_each_of_the_keys_is_taken_in_either_header(key: str) -> None:
    client = client_of(api_keys="first,second")
    assert status_of(client, Authorization=f"Bearer {key}") == 503
    assert status_of(client, Authorization=f"bearer  {key}") == 503
    assert status_of(client, X_Api_Key=key) == 503


@pytest.mark.parametrize(
    "headers",
    [
        {"Authorization": "Bearer third"},
        {"Authorization": "Bearer firs"},
        {"Authorization": "Bearer first,second"},
        {"Authorization": "Bearer FIRST"},
        {"Authorization": "Bearer \xff\xfe"},
        {"X_Api_Key": "none"},
    ],
)
def test_another_key_is_refused(headers: dict[str, str]) -> None:
    client = client_of(api_keys="first,second")
    response = client.get("/v1/models", headers={name.replace("_", "-"): text for name, text in headers.items()})
    assert response.status_code == 401
    error = response.get_json()["error"]
    assert (error["type"], error["code"]) == ("authentication_error", "invalid_api_key")
    assert response.headers["WWW-Authenticate"] == "Bearer"
    assert response.headers["x-should-retry"] == "false"
    assert "first" not in response.text


@pytest.mark.parametrize("headers", [{}, {"Authorization": "Basic Zmlyc3Q6"}, {"Authorization": "Bearer "}])
def test_a_request_without_a_key_is_told_how_to_send_it(headers: dict[str, str]) -> None:
    response = client_of(api_keys="first").get("/v1/models", headers=headers)
    assert response.status_code == 401
    assert response.get_json()["error"]["code"] == "missing_api_key"
    assert "Authorization: Bearer" in response.get_json()["error"]["message"]


def test_a_key_may_have_letters_of_any_script() -> None:
    client = client_of(api_keys="ключ-ü")
    as_the_server_hands_it_over = "ключ-ü".encode().decode("latin-1")
    response = client.get(
        "/v1/models", environ_overrides={"HTTP_AUTHORIZATION": f"Bearer {as_the_server_hands_it_over}"}
    )
    assert response.status_code == 503


@pytest.mark.parametrize("path", ["/health", "/ready", "/", "/docs", "/docs/swagger-ui.css", "/openapi.json"])
def test_probes_and_documentation_need_no_key(path: str) -> None:
    assert status_of(client_of(api_keys="first"), path) in {200, 503}


@pytest.mark.parametrize("path", ["/metrics", "/v1/models", "/transcribe", "/inference", "/not/there"])
def test_all_else_needs_one(path: str) -> None:
    assert status_of(client_of(api_keys="first"), path) == 401


def test_a_refused_upload_is_not_read() -> None:
    body = RecordingBody()
    response = client_of(api_keys="first").post("/transcribe", input_stream=body, content_length=1000)
    assert not body.was_read
    assert response.status_code == 401


@pytest.mark.parametrize("host", ["127.0.0.1", "127.8.9.1", "::1", "localhost"])
def test_on_loopback_no_key_is_needed(host: str) -> None:
    guard.check_exposure(Settings(host=host))


@pytest.mark.parametrize("host", [ANY, "::", "192.0.2.7", "2001:db8::7", "a..b", "x" * 70])
def test_what_is_not_surely_loopback_needs_keys_or_none(host: str) -> None:
    with pytest.raises(OptionError, match="WHISPER_API_KEYS") as refused:
        guard.check_exposure(Settings(host=host))
    assert host in str(refused.value)
    assert "'none'" in str(refused.value)
    guard.check_exposure(Settings(host=host, api_keys="first"))
    guard.check_exposure(Settings(host=host, api_keys="none"))


@pytest.mark.parametrize("found", [[], ["127.0.0.1", "192.0.2.7"]])
def test_a_name_counts_as_loopback_only_if_all_its_addresses_are(
    monkeypatch: pytest.MonkeyPatch, found: list[str]
) -> None:
    def resolve(*_: object, **__: object) -> list[tuple[object, ...]]:
        """A double: the suite asks no name server."""
        if not found:
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, 0)) for address in found]

    monkeypatch.setattr(socket, "getaddrinfo", resolve)
    with pytest.raises(OptionError, match="WHISPER_API_KEYS"):
        guard.check_exposure(Settings(host="name.example"))


@pytest.mark.parametrize("host", ["127.0.0.1", ANY])
def test_none_beside_keys_is_refused_without_telling_them(host: str) -> None:
    with pytest.raises(OptionError, match="beside keys") as refused:
        guard.check_exposure(Settings(host=host, api_keys="sesame,None"))
    assert "sesame" not in str(refused.value)


def test_an_admin_key_is_no_word_that_everybody_guesses() -> None:
    with pytest.raises(OptionError, match="WHISPER_ADMIN_KEYS has 'none'"):
        guard.check_exposure(Settings(admin_keys="sesame,None"))


OWN = {"Host": "localhost:8000", "Origin": "http://localhost:8000"}


@pytest.mark.parametrize("origin", [ORIGIN, "http://localhost:3000", "http://localhost", "null", "", "http://["])
@pytest.mark.parametrize("keys", ["none", ()])
def test_without_keys_a_page_of_elsewhere_is_refused(origin: str, keys: str) -> None:
    client = client_of(api_keys=keys)
    body = RecordingBody()
    headers = {**OWN, "Origin": origin, "Content-Type": "text/plain"}
    response = client.post("/transcribe", headers=headers, input_stream=body, content_length=1000)
    assert response.status_code == 403
    assert response.get_json()["error"]["code"] == "foreign_origin"
    assert "WHISPER_CORS_ORIGINS" in response.get_json()["error"]["message"]
    assert not body.was_read
    assert client.get("/health", headers=headers).status_code == 200


@pytest.mark.parametrize(
    ("settings", "headers"),
    [
        ({}, OWN),
        ({}, {**OWN, "Origin": "HTTP://LocalHost:8000"}),
        ({}, {"Host": "localhost", "Origin": ORIGIN, "Sec-Fetch-Site": "same-origin"}),
        ({"cors_origins": ORIGIN}, {**OWN, "Origin": ORIGIN}),
        ({"cors_origins": "*"}, {**OWN, "Origin": "null"}),
        ({"api_keys": "none"}, {"Host": "speech.example", "Origin": "https://speech.example"}),
    ],
)
def test_without_keys_its_own_page_and_the_origins_that_may_are_served(
    settings: dict[str, str], headers: dict[str, str]
) -> None:
    assert client_of(**settings).get("/v1/models", headers=headers).status_code == 503


def test_with_keys_the_key_decides() -> None:
    headers = {"Host": "evil.example", "Origin": ORIGIN, "X-Api-Key": "first"}
    assert client_of(api_keys="first").get("/v1/models", headers=headers).status_code == 503


@pytest.mark.parametrize(
    "host", ["evil.example:8000", "127.0.0.1.evil.example", "localhost.evil.example", "[", "192.0.2.7"]
)
def test_on_loopback_a_name_of_elsewhere_is_refused(host: str) -> None:
    client = client_of()
    response = client.get("/v1/models", headers={"Host": host, "Origin": f"http://{host}"})
    assert response.status_code == 403
    assert response.get_json()["error"]["code"] == "foreign_host"
    assert client.get("/health", headers={"Host": host}).status_code == 200
    assert client_of(api_keys="none").get("/v1/models", headers={"Host": host}).status_code == 503


@pytest.mark.parametrize(
    "host",
    ["localhost", "LOCALHOST:8000", "localhost.:8000", "a.localhost", "127.0.0.1:8000", "127.9.9.9", "[::1]:8000"],
)
def test_on_loopback_its_names_are_served(host: str) -> None:
    assert client_of().get("/v1/models", headers={"Host": host}).status_code == 503


def test_beyond_loopback_any_name_is_served() -> None:
    client = client_of(host=ANY)  # nothing listens: a server would not start like this
    assert client.get("/v1/models", headers={"Host": "speech.example"}).status_code == 503


def test_without_origins_there_are_no_cors_headers() -> None:
    client = client_of()
    for response in (
        client.get("/health", headers={"Origin": ORIGIN}),
        client.options("/transcribe", headers=PREFLIGHT),
    ):
        assert not [name for name, _ in response.headers if name.startswith(CORS)]


def test_an_allowed_origin_may_read_answers_and_errors() -> None:
    client = client_of(cors_origins=f"https://other.example,{ORIGIN}", api_keys="first")
    for path, status in (("/health", 200), ("/v1/models", 401), ("/not/there", 401)):
        response = client.get(path, headers={"Origin": ORIGIN})
        assert response.status_code == status
        assert response.headers[f"{CORS}Allow-Origin"] == ORIGIN
        assert "x-request-id" in response.headers[f"{CORS}Expose-Headers"]
        assert "Origin" in response.vary


@pytest.mark.parametrize(
    "origin", ["https://evil.example", "http://app.example", f"{ORIGIN}.evil.example", "null", f"{ORIGIN}:444"]
)
def test_another_origin_may_not(origin: str) -> None:
    response = client_of(cors_origins=ORIGIN).get("/health", headers={"Origin": origin})
    assert f"{CORS}Allow-Origin" not in response.headers
    assert "Origin" in response.vary


def test_a_star_lets_every_origin_read() -> None:
    response = client_of(cors_origins="*").get("/health", headers={"Origin": "https://any.example"})
    assert response.headers[f"{CORS}Allow-Origin"] == "*"


@pytest.mark.parametrize("path", ["/transcribe", "/v1/audio/transcriptions", "/inference"])
def test_a_preflight_is_answered_without_a_key(path: str) -> None:
    asked = {**PREFLIGHT, f"{CORS}Request-Headers": "authorization,content-type,x-request-id"}
    response = client_of(cors_origins=ORIGIN, api_keys="first").options(path, headers=asked)
    assert response.status_code == 204
    assert response.headers[f"{CORS}Allow-Origin"] == ORIGIN
    assert {"GET", "POST", "DELETE"} <= set(response.headers[f"{CORS}Allow-Methods"].split(", "))
    assert response.headers[f"{CORS}Allow-Headers"] == "authorization,content-type,x-request-id"
    assert int(response.headers[f"{CORS}Max-Age"]) > 0


def test_only_preflights_go_without_a_key() -> None:
    assert client_of(cors_origins=ORIGIN, api_keys="first").options("/transcribe").status_code == 401
