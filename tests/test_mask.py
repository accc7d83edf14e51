"""The mask: a key is not read in what is told, however the answer spelt it."""

from __future__ import annotations

import html
import json
import logging
import re
import time
from collections.abc import Callable
from urllib.parse import quote, quote_plus

import pytest
from hypothesis import given
from hypothesis import strategies as st

from otel_agent_tracker.client.mask import MASK, masked, masked_in_debug_lines

ODD_KEY = """sk-"7f3a\\\\9c/1e%5b&2d<80>46'x+y=|`{~}"""
KEYS = st.text(st.characters(min_codepoint=0x21, max_codepoint=0x7E), min_size=1, max_size=40)
Spell = Callable[[str], str]


def as_json(text: str) -> str:
    """As within the quotes of a JSON text."""
    return json.dumps(text)[1:-1]


def all_escaped(text: str) -> str:
    """As JSON of the most careful kind writes it."""
    return "".join(each if each.isalnum() else f"\\u{ord(each):04X}" for each in text)


def percent(text: str) -> str:
    return quote(text, safe="")


def percent_in_lower_case(text: str) -> str:
    return re.sub("%..", lambda escape: escape[0].lower(), percent(text))


SPELLINGS: dict[str, Spell] = {
    "as it is": str,
    "JSON": as_json,
    "JSON in JSON": lambda key: as_json(as_json(key)),
    "JSON with slashes escaped": lambda key: as_json(key).replace("/", "\\/"),
    "JSON in code points": all_escaped,
    "URL": percent,
    "URL in a URL": lambda key: percent(percent(key)),
    "URL, lower case": percent_in_lower_case,
    "URL path": quote,
    "form": quote_plus,
    "HTML": html.escape,
    "HTML in HTML": lambda key: html.escape(html.escape(key)),
    "XML": lambda key: html.escape(key).replace("&#x27;", "&apos;"),
    "Python": lambda key: repr(key)[1:-1],
    "Python bytes": lambda key: repr(key.encode())[2:-1],
}
EACH_SPELLING = pytest.mark.parametrize("spell", SPELLINGS.values(), ids=SPELLINGS.keys())


@EACH_SPELLING
def test_a_key_is_masked_however_it_is_spelt(spell: Spell) -> None:
    """Whole, and nothing beside it."""
    assert masked(f"<<{spell(ODD_KEY)}>> {spell(ODD_KEY)}.", (ODD_KEY,)) == f"<<{MASK}>> {MASK}."


@EACH_SPELLING
@given(key=KEYS)
def test_every_key_is_masked_in_every_spelling(spell: Spell, key: str) -> None:
    """Of any characters that a header can carry."""
    told = masked(f" {spell(key)} ", (key,))
    assert MASK in told
    assert key in MASK or key not in told.replace(MASK, " ")


def test_a_secret_that_begins_another_leaves_nothing_of_it() -> None:
    """The longer one is looked for first."""
    assert masked("key-one, key", ("key", "key-one")) == "***, ***"


def test_without_secrets_a_text_is_as_it_was() -> None:
    """A tracker without keys."""
    assert masked("422 no", ()) == "422 no"


def test_other_texts_are_as_they_were() -> None:
    """Also those that nearly hold it."""
    assert masked("key-on, ey-one, KEY-ONE", ("key-one",)) == "key-on, ey-one, KEY-ONE"


@pytest.mark.parametrize("text", ["\\" * 100_000, "%25" * 40_000, "&amp;" * 20_000])
@pytest.mark.parametrize("key", ["\\" * 40 + "z", '"' * 40 + "z", "%25" * 10 + "z", "&amp;" * 10 + "z"])
def test_no_text_takes_long(text: str, key: str) -> None:
    """Neither the key nor the answer can be such that the search goes back and forth."""
    began = time.process_time()
    assert masked(text, (key,)) == text
    assert time.process_time() - began < 2


def test_debug_lines_of_the_network_library_are_masked_during_our_requests(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """And at no other time: a host that uses the same library reads its own lines as they are."""
    caplog.set_level(logging.DEBUG)
    log = logging.getLogger("httpcore.http11")
    with masked_in_debug_lines(("key-one",)):
        log.debug("ours %s", "key-one")
    log.debug("theirs %s", "key-one")
    assert caplog.messages == ["ours ***", "theirs key-one"]
