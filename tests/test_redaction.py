"""What counts as a secret, what does not, and that looking for them takes linear time."""

from __future__ import annotations

import json
import time
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from otel_agent_tracker.metadata import to_json_text
from otel_agent_tracker.redaction import REDACTED, REDACTION_FAILED, Redactor

JWT = "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxMjM0NTY3ODkwIn0.dozjgNryP4J3jVmNHl0w5N_XgL0n3I9PlFUP0THsR8U"
KEY = "-----BEGIN RSA PRIVATE KEY-----\nMIIEow\n-----END RSA PRIVATE KEY-----"
redactor = Redactor()


@pytest.mark.parametrize(
    "key",
    [
        *(
            "authorization",
            "Authorization",
            "Proxy-Authorization",
            "api_key",
            "apikey",
            "apiKey",
            "API-KEY",
            "APIKey",
        ),
        *("x-api-key", "openai_api_key", "OPENAI_API_KEY", "api.key", "token", "access_token", "accessToken"),
        *(
            "accesstoken",
            "refresh-token",
            "password",
            "db_password",
            "passwd",
            "PassWord",
            "passphrase",
            "pwd",
        ),
        *(
            "secret",
            "client_secret",
            "clientSecret",
            "aws_secret_access_key",
            "secrets",
            "cookie",
            "Set-Cookie",
        ),
        *(
            "credentials",
            "private_key",
            "privateKey",
            "ssh_key",
            "connection_string",
            "auth",
            "jwt",
            "db_pass",
        ),
    ],
)
def test_a_key_that_names_a_secret(key: str) -> None:
    """Its value is redacted whatever it looks like, on every way in."""
    assert redactor.json({"a": [{key: "x"}]}) == {"a": [{key: REDACTED}]}
    assert json.loads(redactor.json_text(to_json_text({key: "x"}))) == {key: REDACTED}


@pytest.mark.parametrize(
    "key",
    [
        *(
            "max_tokens",
            "input_tokens",
            "token_count",
            "tokens",
            "tokenizer",
            "author",
            "keyword",
            "monkey",
            "key",
        ),
        *(
            "primary_key",
            "public_key",
            "passage",
            "passed",
            "compass",
            "secretary",
            "authentic",
            "auth_method",
        ),
        *("cookies_" * 40, "token_type", "api", "pass_rate"),
    ],
)
def test_a_key_that_names_no_secret(key: str) -> None:
    """Words count whole, so that counts of tokens and the like stay."""
    value = {key: "x"}
    assert redactor.json(value) == value
    assert json.loads(redactor.json_text(to_json_text(value))) == value


def test_below_a_secret_key_all_is_redacted_but_yes_no_and_nothing() -> None:
    """A PIN may be a number; ``has_password`` is no password; a token is a text, not a time or a count."""
    value = {
        "password": 1234,
        "credentials": {"user": "a"},
        "secret": [1],
        "has_password": True,
        "cookie": None,
    }
    expected = {
        "password": REDACTED,
        "credentials": REDACTED,
        "secret": REDACTED,
        "has_password": True,
        "cookie": None,
    }
    assert redactor.json(value) == expected
    assert redactor.json({"time_to_first_token": 0.3}) == {"time_to_first_token": 0.3}


@pytest.mark.parametrize(
    ("text", "redacted"),
    [
        ("key sk-abcDEF1234567890abcd.", "key [redacted]."),
        ("sk-ant-api03-AAAAAAAAAAAAAAAAAAAA", "[redacted]"),
        ("sk_live_abcdefghij1234", "[redacted]"),
        ("ghp_abcdefghijklmnopqrstuvwxyz0123456789", "[redacted]"),
        ("github_pat_11ABCDEFG0abcdefghijkl_mnop", "[redacted]"),
        ("xoxb-1234567890-abc", "[redacted]"),
        ("AIzaSyA1234567890abcdefghijklmnopqrstuv", "[redacted]"),
        ("hf_abcdefghijklmnopqrstuvwx", "[redacted]"),
        ("id AKIAIOSFODNN7EXAMPLE here", "id [redacted] here"),
        (f"token was {JWT}!", "token was [redacted]!"),
        (JWT[:60], "[redacted]"),
        ("Authorization: Bearer abc123def", "Authorization: Bearer [redacted]"),
        ("BEARER\nabc123def", "BEARER\n[redacted]"),
        ("authorization: Basic dXNlcjpwYXNz", "authorization: Basic [redacted]"),
        ("postgresql://user:p@ss@db.local/x?y=@", "postgresql://[redacted]@db.local/x?y=@"),
        ("https://tok@example.org", "https://[redacted]@example.org"),
        (f"a {KEY} b", "a [redacted] b"),
        (KEY[:40], "[redacted]"),
        ("GET /?api_key=abcdef&q=1", "GET /?api_key=[redacted]&q=1"),
        ("DB_PASSWORD='hunter2'", "DB_PASSWORD='[redacted]'"),
        ('body {"password": "hunter 2", "n": 1}', 'body {"password": "[redacted]", "n": 1}'),
        ("{'api_key': 'abc'}", "{'api_key': '[redacted]'}"),
        ("İ İ Token=abcdef İ", "İ İ Token=[redacted] İ"),
        ("token=pwd=abcdef", "token=[redacted]"),
        ("'token': 'a secret=bcd and more'", "'token': '[redacted]'"),
        ('"password" : "hunter 2"', '"password" : "[redacted]"'),
        (r"{\"client_secret\": \"abc\"}", r"{\"client_secret\": \"[redacted]\"}"),
    ],
)
def test_a_text_with_the_form_of_a_secret(text: str, redacted: str) -> None:
    """The secret goes, the words around it stay, on every way in."""
    assert redactor.text(text) == redacted
    assert redactor.json(["k", {"k": text}]) == ["k", {"k": redacted}]
    assert json.loads(redactor.json_text(to_json_text({"k": text}))) == {"k": redacted}
    assert list(json.loads(redactor.json_text(to_json_text({text: 1})))) == [redacted]


@pytest.mark.parametrize(
    "text",
    [
        "The task-force took a risk-based approach to disk-encryption-at-rest.",
        "sk-learn-is-a-library-that-people-know",
        "the bearer of this letter; bearer authentication; Asia and AIzawa",
        "mail me at a@example.org or see https://example.org/a?b=c",
        "max_tokens=5 is too low; the token was wrong; my password: it does not work",
        "eyJ is how they begin; eyJshort",
        '{"tokens": "12", "a": "b"}',
    ],
)
def test_harmless_text_is_unchanged(text: str) -> None:
    """Words of daily life that look like the beginning of a secret stay."""
    assert redactor.text(text) == text
    assert json.loads(redactor.json_text(to_json_text({"k": text}))) == {"k": text}


def test_disabled_changes_nothing() -> None:
    """With redaction off everything passes as it is."""
    off = Redactor(enabled=False)
    value = {"password": "x", "text": JWT}
    assert off.json(value) == value
    assert off.text(JWT) == JWT
    assert off.json_text(text := to_json_text(value)) is text


def test_a_users_function_comes_after_ours() -> None:
    """It sees each text, not the keys, once our own secrets are gone; with ours off it works alone."""
    both = Redactor(extra=lambda text: text.replace("Ann", "<name>"))
    assert both.text(f"Ann {JWT}") == f"<name> {REDACTED}"
    assert json.loads(both.json_text('{"Ann":["Ann",1]}')) == {"Ann": ["<name>", 1]}
    alone = Redactor(enabled=False, extra=str.upper)
    assert alone.json({"token": "abc"}) == {"token": "ABC"}


@pytest.mark.parametrize("extra", [lambda text: text[999], lambda text: None, lambda text: 1 / 0])
def test_a_users_function_that_fails_lets_nothing_through(extra: Any) -> None:
    """Where it raises or returns no text, the text is withheld."""
    failing = Redactor(extra=extra)
    assert failing.text("abc") == REDACTION_FAILED
    assert failing.json({"a": "abc"}) == {"a": REDACTION_FAILED}


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=20,
)


@given(JSON)
def test_the_quick_way_and_the_thorough_way_agree(value: object) -> None:
    """Redacting a text of JSON is redacting its value."""
    text = to_json_text({"value": value, "password": "x", "url": "https://a:b@c"})
    assert json.loads(redactor.json_text(text)) == redactor.json(json.loads(text))


@given(JSON)
def test_redacting_twice_changes_nothing_more(value: object) -> None:
    """What is left holds no secret."""
    once = redactor.json({"value": value, "header": "Authorization: Bearer abc123def"})
    assert redactor.json(once) == once


HOSTILE = (
    *("sk-", "sk-a", "eyJ", "eyJaaaaaaaa.", "://", "://aaaa@", "-----BEGIN PRIVATE KEY-----", "-----BEGIN "),
    *("-----BEGIN PRIVATE KEY----- -----END ", "bearer ", "bearer aaaa", "authorization: basic ", "token"),
    *("token=", "token='", 'token":"', 'token":', "AKIA", "ghp_", "api_key", "A", "_", "=", "'", '"', "\\"),
)


@pytest.mark.parametrize("piece", HOSTILE)
def test_hostile_texts_take_linear_time(piece: str) -> None:
    """64 KB of beginnings without an end take milliseconds; quadratic time would take seconds."""
    for text in (piece * (65_536 // len(piece)), piece + "a" * 65_536, "a" * 65_536 + piece):
        start = time.thread_time()
        redactor.text(text)
        redactor.json({text: 1})
        assert time.thread_time() - start < 0.5
