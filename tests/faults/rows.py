"""The faults that must be survived, by number, and the tests that show it.

A test in this folder is named after the faults it injects, ``test_fault_07_…`` or ``test_fault_07_08_…``, and the
first paragraph of its docstring is what is promised. `docs/reliability.md` is made of both.
"""

from __future__ import annotations

import ast
import re
from collections import defaultdict
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

__all__ = ["FAULTS", "Shown", "shown"]

FAULTS: Mapping[int, str] = {
    1: "The tracker is down when the application starts",
    2: "The tracker is down for an hour, or for three days",
    3: "Answers 500, 502, 503, 504, 408, 425",
    4: "Answer 429, with every kind of `Retry-After`",
    5: "An answer that drips, a byte at a time",
    6: "A connection that is accepted and never answered",
    7: "The connection is reset or closed before, or in, the answer",
    8: "The answer is lost after the commit, then the process is killed",
    9: "A batch that is accepted in part",
    10: "One event of a batch that is refused with 400, 413 or 422",
    11: "Answers 401, 402, 403, 407, 421, 426 and 451",
    12: "Answers 404, 405 and 501, and 4xx without a rule of their own",
    13: "A captive portal's page, other content types, 204, redirects",
    14: "An answer of a gigabyte, or one that unpacks to it",
    15: "Garbage in place of HTTP, a connection that ends after some requests",
    16: "Names that do not resolve, IPv6 alone, proxy variables, netrc",
    17: "The disk is full when an event is accepted",
    18: "The state folder is read-only, missing, forbidden or a file",
    19: "The state file is damaged: header, half of it, a page, its log, nothing in it",
    20: "The state folder is deleted while it is in use",
    21: "The state folder is at its limit for days",
    22: "Two processes, or two releases, on one state folder",
    23: "Sixteen processes write at once",
    24: "`kill -9` at any instruction",
    25: "Events left by a process that crashed",
    26: "SIGTERM with little time and no tracker",
    27: "Every way in which a process can end",
    28: "A fork before the first event, after it, with events waiting, with our lock held",
    29: "Servers that fork their workers",
    30: "The interpreter shuts down, threads cannot start, logging is closed",
    31: "Made twice, closed twice, used afterwards, flushed with a timeout",
    32: "asyncio, greenlets, 200 threads, instrumentation of our own requests",
    33: "Anything that raises while a span starts or ends",
    34: "The wall clock jumps by a day, back or forth",
    35: "The machine sleeps for two hours",
    36: "A restart while sessions are live",
    37: "The TTL is changed while running; a TTL that is none",
    38: "A million sessions, ten thousand of them over at once",
    39: "Session ids without bound",
    40: "Touch, end and expiry of one session at one moment",
    41: "Ends twice, after one another, in every order",
    42: "Events of a session nobody started, a start after its end",
    43: "Spans without an id, with a late one, never ended, in a child process, sampled out, with too many attributes",
    44: "Ids of every kind of character",
    45: "Metadata that JSON cannot hold",
    46: "Metadata with keys of ours",
    47: "Secrets in metadata",
    48: "Line breaks and other characters in ids and keys",
    49: "OTLP that is malformed, cut off, of another encoding, or has bad ids and times",
    50: "Bombs: bodies that unpack to much, or not at all",
    51: "Bodies of a little that is very many",
    52: "Bodies and heads that are too large, or tell their length twice",
    53: "Senders that stop in the middle, by the hundred",
    54: "A receiver of OTLP that cannot keep what it gets",
    56: "Tokens that are wrong, empty, doubled or in another place",
    57: "A receiver that other machines reach, without a token",
}

_FOLDER = Path(__file__).parent
_NAME = re.compile(r"test_fault((?:_\d\d)+)_")


class Shown(NamedTuple):
    """A test that shows what holds under so many `faults`; `promise` is from its docstring."""

    file: str
    test: str
    promise: str
    faults: int


def shown() -> dict[int, list[Shown]]:
    """The tests of each fault, in the order of the files."""
    found: defaultdict[int, list[Shown]] = defaultdict(list)
    for path in sorted(_FOLDER.rglob("test_*.py")):
        for function in _functions(ast.parse(path.read_text(encoding="utf-8"))):
            if (name := _NAME.match(function.name)) is not None:
                promise = " ".join((ast.get_docstring(function) or "").partition("\n\n")[0].split())
                numbers = [int(number) for number in name[1].split("_")[1:]]
                test = Shown(path.relative_to(_FOLDER).as_posix(), function.name, promise, len(numbers))
                for number in numbers:
                    found[number].append(test)
    return dict(found)


def _functions(tree: ast.Module) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield node
