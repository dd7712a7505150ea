"""The page at `/`, as the server hands it out; tests/page tries it in a browser."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from flask.testing import FlaskClient

from tests.conftest import ROOT
from tests.web.conftest import bare_app
from whisperlib import __version__
from whisperlib.languages import LANGUAGES
from whisperlib.web.routes import page

FILES = sorted(path.name for path in (ROOT / "whisperlib/web/page").iterdir())
HTML = {"Accept": "text/html,application/xhtml+xml;q=0.9,*/*;q=0.8"}


@pytest.fixture
def client() -> FlaskClient:
    return bare_app().test_client()


@pytest.mark.parametrize("accept", ["text/html", "*/*", "text/html;q=0.5, application/xhtml+xml"])
def test_people_get_the_page(client: FlaskClient, accept: str) -> None:
    response = client.get("/", headers={"Accept": accept})
    assert (response.status_code, response.mimetype) == (200, "text/html")
    assert "<title>whisperlib</title>" in response.text
    assert "Accept" in response.vary


def test_a_program_gets_json(client: FlaskClient) -> None:
    response = client.get("/", headers={"Accept": "application/json"})
    told = response.get_json()
    assert (told["name"], told["version"]) == ("whisperlib", __version__)
    assert (told["documentation"], told["openapi"], told["health"]) == ("/docs", "/openapi.json", "/health")
    assert "Accept" in response.vary


def test_the_page_runs_its_own_files_and_nothing_else(client: FlaskClient) -> None:
    policy = client.get("/", headers=HTML).headers["Content-Security-Policy"]
    directives = {name: values for name, *values in map(str.split, policy.split(";"))}
    assert directives["default-src"] == ["'none'"]
    assert directives["script-src"] == directives["style-src"] == directives["connect-src"] == ["'self'"]
    assert directives["media-src"] == ["'self'", "blob:", "http:", "https:"]
    assert directives["base-uri"] == directives["form-action"] == directives["frame-ancestors"] == ["'none'"]
    assert "unsafe" not in policy


def test_nothing_stands_inline_where_the_policy_forbids_it(client: FlaskClient) -> None:
    markup = client.get("/", headers=HTML).text
    assert not re.search(r"<style|\sstyle=|\son\w+=|javascript:|<script(?![^>]*\ssrc=)", markup)


def test_all_that_it_names_is_there_and_relative(client: FlaskClient) -> None:
    named = set(re.findall(r'(?:href|src)="([^"#]+)"', client.get("/", headers=HTML).text))
    assert {"page/page.js", "page/style.css", "page/icon.svg", "docs"} <= named
    for name in FILES:
        text = client.get(f"/page/{name}").text
        named |= {f"page/{module}" for module in re.findall(r'from "\./([\w.]+)"', text)}
    for address in named:
        assert not re.match(r"/|\w+:", address)
        assert client.get(f"/{address}").status_code == 200, address
    assert {f"page/{name}" for name in FILES} - named == {"page/index.html"}


def test_below_a_prefix_it_is_the_same(client: FlaskClient) -> None:
    below = client.get("/", headers=HTML, environ_overrides={"SCRIPT_NAME": "/below"})
    assert below.data == client.get("/", headers=HTML).data


@pytest.mark.parametrize("address", ["/", *(f"/page/{name}" for name in FILES)])
def test_a_browser_asks_each_time_and_gets_only_what_is_new(client: FlaskClient, address: str) -> None:
    first = client.get(address, headers=HTML)
    assert first.headers["Cache-Control"] == "no-cache"
    assert first.headers["X-Content-Type-Options"] == "nosniff"
    assert first.mimetype in {"text/html", "text/css", "text/javascript", "image/svg+xml"}
    tag = first.headers["ETag"]
    again = client.get(address, headers={**HTML, "If-None-Match": tag})
    assert (again.status_code, again.data, again.headers["ETag"]) == (304, b"", tag)
    assert client.get(address, headers={**HTML, "If-None-Match": '"another"'}).data == first.data


def test_another_content_has_another_tag(client: FlaskClient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(page._FILES, "new.css", tmp_path / "new.css")
    tags = set[str]()
    for text in ("a { color: red }", "b { color: red }"):
        (tmp_path / "new.css").write_text(text, encoding="utf-8")
        tags.add(client.get("/page/new.css").headers["ETag"])
    assert len(tags) == 2


@pytest.mark.parametrize("name", ["nothing.js", "../routes/page.py", "%2e%2e/routes/page.py", "..%2froutes%2fpage.py"])
def test_nothing_else_can_be_had(client: FlaskClient, name: str) -> None:
    response = client.get(f"/page/{name}")
    assert response.status_code == 404
    assert response.get_json()["error"]["code"] == "not_found"


def test_the_page_is_told_what_the_server_has() -> None:
    response = bare_app(profile="fast", max_body_bytes=5_000_000).test_client().get("/page/config.json")
    assert response.headers["Cache-Control"] == "no-store"
    told = response.get_json()
    page.PageConfig.model_validate(told)
    languages = told.pop("languages")
    assert told == {
        "version": __version__,
        "profile": "fast",
        "language_model": None,
        "needs_key": False,
        "max_body_bytes": 5_000_000,
    }
    assert list(languages) == list(LANGUAGES)
    assert (languages["de"], languages["ht"]) == ("German", "Haitian Creole")


def test_the_language_model_is_told_by_its_name_alone() -> None:
    app = bare_app(llm_base_url="http://127.0.0.1:9/v1", llm_model="gemma3", llm_api_key="sesame")
    response = app.test_client().get("/page/config.json")
    assert response.get_json()["language_model"] == "gemma3"
    assert "sesame" not in response.text
    assert "127.0.0.1" not in response.text


def test_where_calls_need_a_key_the_page_does_not_but_knows() -> None:
    client = bare_app(api_keys="simsalabim").test_client()
    assert client.get("/v1/models").status_code == 401
    assert client.get("/", headers=HTML).status_code == 200
    assert all(client.get(f"/page/{name}").status_code == 200 for name in FILES)
    config = client.get("/page/config.json")
    assert config.get_json()["needs_key"] is True
    assert "simsalabim" not in config.text
    assert bare_app(api_keys="none").test_client().get("/page/config.json").get_json()["needs_key"] is False


def test_the_package_has_its_files() -> None:
    assert '"web/page/*"' in (ROOT / "pyproject.toml").read_text(encoding="utf-8")
