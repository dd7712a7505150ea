"""The application as a whole: what it is put together from."""

from __future__ import annotations

import pytest

from tests.web.conftest import bare_app
from whisperlib.errors import OptionError
from whisperlib.settings import Settings
from whisperlib.web import create_app
from whisperlib.web.service import Service, current_service


def test_it_has_the_routes_of_every_family() -> None:
    rules = {(rule.rule, method) for rule in bare_app().url_map.iter_rules() for method in rule.methods or ()}
    assert {
        ("/", "GET"),
        ("/docs", "GET"),
        ("/openapi.json", "GET"),
        ("/health", "GET"),
        ("/ready", "GET"),
        ("/metrics", "GET"),
        ("/transcribe", "POST"),
        ("/v1/audio/transcriptions", "POST"),
        ("/v1/audio/translations", "POST"),
        ("/v1/models", "GET"),
        ("/inference", "POST"),
    } <= rules


def test_it_serves_the_service_that_it_is_given() -> None:
    service = Service(Settings(model_size="micro"))
    with create_app(service).app_context():
        assert current_service() is service


def test_it_makes_a_service_of_its_own_if_given_none() -> None:
    one, other = create_app(), create_app()
    with one.app_context():
        first = current_service()
    with other.app_context():
        assert current_service() is not first
    assert first.phase == "loading"


def test_a_body_may_be_as_large_as_the_settings_say() -> None:
    assert bare_app(max_body_bytes=2048).config["MAX_CONTENT_LENGTH"] == 2048


def test_settings_that_cannot_be_used_are_told_when_it_is_made() -> None:
    with pytest.raises(OptionError, match="not-a-network"):
        bare_app(url_allow="10.0.0.0/not-a-network")


def test_fields_are_answered_in_the_order_of_the_documentation() -> None:
    answer = bare_app().test_client().get("/health").text
    assert answer.index('"status"') < answer.index('"reason"') < answer.index('"libraries"')
