"""Secrets out of what users hand in: metadata, feedback and error texts, before an event is made of them.

By the name of a key (``openai_api_key``, ``Set-Cookie``; not ``max_tokens``) and by the form of a text
(``sk-…``, ``Bearer …``, the password in a URL). Every pattern takes time linear in the text: what may repeat
does so possessively, up to a bound, or to the end of what was matched. Most texts are let through by one
cheap search.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from functools import lru_cache
from typing import Any, NamedTuple

import orjson

__all__ = ["REDACTED", "REDACTION_FAILED", "Redactor"]

REDACTED = "[redacted]"
REDACTION_FAILED = "[redaction failed]"
_LONGEST_KEPT = 65_536  # characters, as of every text


class Redactor:
    """Replaces secrets by ``[redacted]``.

    With `enabled` False nothing is looked for. `extra` is a function of the user's that gets every text after
    that, in either case, and returns what may be kept; where it raises, or returns what no event can hold,
    nothing is.
    """

    __slots__ = ("_enabled", "extra")

    def __init__(self, enabled: bool = True, extra: Callable[[str], str] | None = None) -> None:
        self._enabled = enabled
        self.extra = extra

    def text(self, text: str) -> str:
        """`text` without the secrets in it."""
        if self._enabled:
            text = _without_secrets(text)
        return text if self.extra is None else _guarded(self.extra, text)

    def json(self, value: Any) -> Any:
        """A copy of the JSON `value` without the secrets in its texts and below keys that name one."""
        if isinstance(value, str):
            return self.text(value)
        if isinstance(value, list):
            return [self.json(item) for item in value]
        if isinstance(value, dict):
            return dict(self._member(key, item) for key, item in value.items())
        return value

    def json_text(self, text: str) -> str:
        """`json` for a value's JSON text as orjson writes it; quick where nothing has to go."""
        if self.extra is None and not (self._enabled and _may_hold_secrets(text)):
            return text
        return orjson.dumps(self.json(orjson.loads(text))).decode()

    def _member(self, key: str, value: Any) -> tuple[str, Any]:
        if not self._enabled:
            return key, self.json(value)
        return _without_secrets(key), REDACTED if _names_secret(key, value) else self.json(value)


def _guarded(extra: Callable[[str], str], text: str) -> str:
    """What `extra` keeps of `text`; nothing that is no text, has no end, or cannot be written as UTF-8."""
    try:
        kept = str.__str__(extra(text))
        kept.encode()
    except Exception:  # noqa: BLE001 - a user's function may raise anything, and its text must not get through
        return REDACTION_FAILED
    return kept if len(kept) <= _LONGEST_KEPT else REDACTION_FAILED


def _without_secrets(text: str) -> str:
    if _RARE_IN_TEXT.search(text) is None:
        return text
    lower = text.lower()
    for form in _FORMS:
        if any(mark in lower for mark in form.marks):
            text = re.sub(form.pattern, form.replacement, text, flags=form.flags)
    return _without_named(text)


def _without_named(text: str) -> str:
    """`text` without what it says to be the value of a secret's name."""
    lower = _lower(text)
    found = [name for name in _NAMES if name in lower]
    spans = sorted(match.span(match.lastindex or 0) for name in found for match in _valued(name, lower))
    pieces: list[str] = []
    position = 0
    for start, end in spans:
        if start >= position:  # and not inside of one before it
            pieces += text[position:start], REDACTED
        position = max(position, end)
    return "".join((*pieces, text[position:]))


def _lower(text: str) -> str:
    """The lower case, character by character: a capital I with a dot would become two, and a long s stay itself."""
    return text.lower() if text.isascii() else text.replace("\u0130", "i").replace("\u017f", "s").lower()


def _valued(name: str, lower: str) -> Iterator[re.Match[str]]:
    """Where `name` has a value; the pattern begins with the name itself, which is searched for quickly."""
    return re.finditer(f"{name}{_NAMES[name]}(?:{_ASSIGNED}|{_MEMBER})", lower)


def _may_hold_secrets(json_text: str) -> bool:
    keys = {piece.rpartition('"')[2] for piece in json_text.split('":')}
    return any(map(_kind_of_key, keys)) or _RARE_IN_JSON.search(json_text) is not None


def _names_secret(key: str, value: object) -> bool:
    """Whether `key` says that `value` is a secret; a yes, a no or nothing (``has_password``) is none."""
    kind = _kind_of_key(key)
    if kind == "text":
        return isinstance(value, str)
    return kind == "always" and value is not None and not isinstance(value, bool)


@lru_cache(maxsize=2_048)
def _kind_of_key(key: str) -> str | None:
    lower = key.lower()
    if len(key) > _LONGEST_KEY or not any(stem in lower for stem in _STEMS):
        return None
    found = _SECRET_KEY.search("_" + "_".join(_WORD.findall(key)).lower() + "_")
    return found.lastgroup if found else None


# --- keys ---------------------------------------------------------------------------------------------------

_LONGEST_KEY = 256
_STEMS = ("auth", "cookie", "credential", "connection", "jwt", "key", "pass", "pwd", "secret", "token")
_WORD = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]++|[0-9]++")
_SECRET_KEY = re.compile(
    r"""
    _ (?P<always>
        authorization | cookies? | credentials? | pwd | pass_?(?:word|wd|phrase|code)s?
      | (?:client|shared|signing|webhook)?_?secrets? | connection_?strings?
      | (?:access|account|api|encryption|master|private|secret|signing|ssh)_?keys?
    ) _
  | _ (?P<text>
        auth | jwt | (?:access|api|auth|bearer|id|refresh|session)?_?token | (?:db|smtp|user)_?pass
    ) _ $
    """,
    re.VERBOSE,
)


# --- forms of texts -----------------------------------------------------------------------------------------


class _Form(NamedTuple):
    """What a secret looks like; one of `marks` is in the lower case of every such text.

    `pattern` begins with a character or a set of them: only then does a search run from one such character to the
    next. It is compiled, and then kept by `re`, for the first text that may have the form: most processes see none,
    and each would pay for it when it imports us.
    """

    marks: tuple[str, ...]
    pattern: str
    flags: re.RegexFlag = re.NOFLAG
    replacement: str = REDACTED


_PRIVATE_KEY = (
    r"-----BEGIN [A-Z0-9 ]{0,40}PRIVATE KEY(?: BLOCK)?-----.*?"
    r"(?:-----END [A-Z0-9 ]{0,40}PRIVATE KEY(?: BLOCK)?-----|\Z)"
)
_USER_OF_URL = r"""://[^\s/?#"'<>]*@"""
_OF_VENDORS = r"""[Aghrswx](?<![A-Za-z0-9][Aghrswx]) (?:
    (?<=s)k-(?=[A-Za-z_-]{0,32}[0-9])[A-Za-z0-9_-]{16,}+
  | (?<=[rs])k_(?:live|test)_[A-Za-z0-9]{10,}+ | (?<=w)hsec_[A-Za-z0-9+/=]{16,}+
  | (?<=g)(?: h[oprsu]_[A-Za-z0-9]{20,}+ | ithub_pat_[A-Za-z0-9_]{20,}+ | lpat-[A-Za-z0-9_-]{16,}+ )
  | (?<=x)ox[a-z]-[A-Za-z0-9-]{10,}+ | (?<=h)f_[A-Za-z0-9]{20,}+
  | (?<=A)(?: Iza[A-Za-z0-9_-]{30,}+ | [KS]IA[A-Z0-9]{16}(?![A-Za-z0-9]) )
)"""
_MARKS_OF_VENDORS = (
    *("sk-", "k_live_", "k_test_", "whsec_", "gho_", "ghp_", "ghr_", "ghs_", "ghu_", "github_pat_", "glpat-"),
    *("xox", "hf_", "aiza", "akia", "asia"),
)
_JWT = r"eyJ(?<![A-Za-z0-9_-]eyJ)[A-Za-z0-9_-]{8,}+\.[A-Za-z0-9_-]*+(?:\.[A-Za-z0-9_-]++)*+"
_BEARER = r"([Bb](?i:earer)[\s:]{1,4})(?=[A-Za-z.]{0,64}[0-9_~+/=-]|[A-Za-z]{20})[A-Za-z0-9._~+/=-]{6,}+"
_SCHEME = r"""([Aa](?i:uthorization)["'\\]{0,2}\s?[:=]\s?["'\\]{0,2}(?i:apikey|basic|digest|token)\s{1,2})[^\s"']++"""

_FORMS = (
    _Form(("private key",), _PRIVATE_KEY, re.DOTALL),
    _Form(("://",), _USER_OF_URL, replacement=f"://{REDACTED}@"),
    _Form(_MARKS_OF_VENDORS, _OF_VENDORS, re.VERBOSE),
    _Form(("eyj",), _JWT),
    _Form(("bearer",), _BEARER, replacement=rf"\g<1>{REDACTED}"),
    _Form(("authorization",), _SCHEME, replacement=rf"\g<1>{REDACTED}"),
)

# What may be said to have a value, and what has to be before it. The value is the last group of its pattern.
_KINDS_OF_KEYS = ("access", "account", "api", "private", "secret")
_IS_SECRET_KEY = "|".join(rf"(?<={kind}{dash}key)" for kind in _KINDS_OF_KEYS for dash in ("", "[_-]"))
_NAMES = {"key": f"(?:{_IS_SECRET_KEY})"} | dict.fromkeys(
    ("passwd", "password", "pwd", "secret", "token"), ""
)
_ASSIGNED = r"""["'\\]{0,2}\s?=\s?["'\\]{0,2}([^\s"'&,;<>\\]{3,}+)"""
_MEMBER = r"""["'\\]{1,2}\s?:\s?["'\\]{1,2}([^"'\\]++)"""

# One of these is in every text of a form above. Each begins with a literal character, so that the search runs
# from one such character to the next.
_RARE = r"""
    -(?: (?<=sk-|at-|x[a-z]-) | ----BEGIN )
  | _(?<=[rs]k_|ec_|h[oprsu]_|at_|hf_)
  | J(?<=eyJ) | I(?<=A[KS]I) | I(?<=AI)za
  | b(?i:earer) | B(?i:earer) | z(?i:ation) | Z(?i:ation)
  | /(?<=://)[^\s/?\#"'<>]*@ | =\s?["'\\]{0,2}[^\s"'&,;<>\\]{3} | '\s?:
"""
_RARE_IN_TEXT = re.compile(
    _RARE + r'| :(?: (?<=":) | (?<="\s:) )', re.VERBOSE
)  # fewer than quotes are colons
_RARE_IN_JSON = re.compile(_RARE + r"| \\", re.VERBOSE)  # a quote in a text has a backslash before it
