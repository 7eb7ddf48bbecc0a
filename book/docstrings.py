"""The docstrings of the library as reStructuredText.

They are plain text. A paragraph flows, unless it is indented or has columns: an equation, a table or an example keeps
its layout. `names` and ``code`` stand in backticks. A line may begin with parameters and what they are, and more of
them may follow in it:

    skip: names of layers left alone; fraction in (0, 1]: how much of the others
        is left, with its further lines indented, or not. depth >= 1.

Every other character means itself.
"""

from __future__ import annotations

import ast
import inspect
import math
import re
import textwrap
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import groupby, pairwise
from typing import Any

# ``code``, `names`, "keys" of registries, which typographic quotes would spoil, and the registries
CODE = re.compile(
    r'``(?P<code>[^`\\]+)``|`(?P<name>[^`\\]+)`|(?P<key>"[\w.:*]*")|(?<=\bkey of )(?P<registry>[\w.]*[A-Z_]{2,}\b)'
)
IDENTIFIER = re.compile(r"[A-Za-z_][\w.]*")
MARKUP = re.compile(r"[\\`*_|]")
COLUMNS = re.compile(r"\S {3,}\S")
BEGINS_PLAINLY = re.compile(r"\\ |\w+[ ,;:]")  # anything else might begin a list, a title, a comment, ...
CLAUSE_END = (".", ";", ":")
WIDTH = 72  # characters that fit in a line of the page, in the usual size


def inline(text: str) -> str:
    """A paragraph of plain text, as one line of reStructuredText."""

    def code(match: re.Match[str]) -> str:
        name = match["name"] or match["registry"]
        content = name or match["code"] or match["key"]
        if content != content.strip():
            return MARKUP.sub(r"\\\g<0>", match[0])
        # The default role sets a name as code, too, and links it to its entry, if it has one.
        mark = "`" if name and IDENTIFIER.fullmatch(content) else "``"
        return rf"\ {mark}{content}{mark}\ "  # escaped spaces vanish, but end a word

    text = " ".join(text.split())
    ends = [0, *(end for match in CODE.finditer(text) for end in match.span()), len(text)]
    plain = [MARKUP.sub(r"\\\g<0>", text[start:end]) for start, end in zip(ends[::2], ends[1::2], strict=True)]
    marked = [*map(code, CODE.finditer(text)), ""]
    line = "".join(part for pair in zip(plain, marked, strict=True) for part in pair)
    line = re.sub(r"::$", r":\:", line)  # would announce a literal block
    return line if BEGINS_PLAINLY.match(line) else rf"\ {line}"


@dataclass
class Piece:
    """A paragraph (level 0), an item of a list (1), or one of the list in an item (2)."""

    text: str
    level: int


def start_pattern(parameters: Iterable[str]) -> re.Pattern[str]:
    """What begins a piece of its own, at the start of a line or behind the end of a clause.

    Groups: item, for parameters that are explained; bound, for those of which only a range is told, and for functions
    with their arguments. It is neither for what ends a list.
    """
    name = "|".join(map(re.escape, parameters)) or "(?!)"
    names = rf"(?:{name})(?:, (?:{name}))*"
    shape, interval = r"(?: \([^()]*\))?", r"(?:in|>=|>) "
    item = rf"{names}{shape}(?: {interval}[\[(\d][^:;]{{0,24}})?: "
    bound = rf"{names}(?:{shape} {interval}(?=[\[(\d])|\([^()]*\) )"
    return re.compile(rf"(?:^|(?<=[.;:] ))(?:(?P<item>{item})|(?P<bound>{bound})|(?:Raises|Returns|Sources?:) )")


def pieces(lines: list[str], starts: re.Pattern[str]) -> list[Piece]:
    """The paragraphs and items in the lines of one paragraph of a docstring."""
    found = [Piece("", 0)]
    for before, line in pairwise(["", *lines]):
        text, begin = line.strip(), 0
        if before.startswith(" ") and not line.startswith(" "):
            found.append(Piece("", 0))  # what comes after the indented lines of an item is not about it
        for match in starts.finditer(text):
            level, at_start = found[-1].level, not match.start()
            if at_start and found[-1].text and not before.endswith(CLAUSE_END):
                continue  # a word of the sentence that the line continues
            if match["bound"] and not at_start and not level:
                continue  # a sentence that mentions a parameter
            found[-1].text += " " + text[begin : match.start()]
            begin = match.start()
            nested = level and (line.startswith(" ") if at_start else level == 2)
            found.append(Piece("", 0 if not (match["item"] or match["bound"]) else 2 if nested else 1))
        found[-1].text += " " + text[begin:]
    return [Piece(piece.text.strip(), piece.level) for piece in found if piece.text.strip()]


def blocks(text: str) -> Iterator[list[str]]:
    """The lines of each paragraph; indented paragraphs that follow each other are one."""
    block: list[str] = []
    lines = [line.rstrip() for line in text.expandtabs().splitlines()]
    for paragraph in (list(group) for filled, group in groupby(lines, bool) if filled):
        if block and block[0].startswith(" ") and paragraph[0].startswith(" "):
            block += ["", *paragraph]
            continue
        if block:
            yield block
        block = paragraph
    if block:
        yield block


def listed(text: str) -> str:
    """The text of an item, with the parameters that it begins with as code."""
    return inline(re.sub(r"^\w+(, \w+)*", lambda names: re.sub(r"\w+", r"``\g<0>``", names[0]), text))


def is_python(text: str) -> bool:
    try:
        ast.parse(text)
    except (SyntaxError, ValueError):
        return False
    return True


def set_apart(block: list[str]) -> list[str]:
    """A block in its own layout."""
    layout = textwrap.dedent("\n".join(block))
    width = max(map(len, layout.splitlines()))
    classes = (
        [f"   :class: columns-{math.ceil(width / 10) * 10}"] if width > WIDTH else []
    )  # the style sheet shrinks it
    language = "python" if is_python(layout) else "text"
    return [f".. code-block:: {language}", *classes, "", *textwrap.indent(layout, "   ").splitlines(), ""]


def convert(text: str, parameters: Iterable[str] = ()) -> list[str]:
    """A docstring as lines of reStructuredText; parameters: the names of those that it may explain."""
    starts, converted = start_pattern(parameters), list[str]()
    for block in blocks(text):
        if block[0].startswith(" ") or any(map(COLUMNS.search, block)):
            converted += set_apart(block)
            continue
        for piece in pieces(block, starts):
            indent = "  " * (piece.level - 1)
            converted += [f"{indent}* {listed(piece.text)}" if piece.level else inline(piece.text), ""]
    return converted


def parameters_of(value: Any) -> list[str]:
    """The names in the signature of a function or class, which its docstring may explain; none if it has none."""
    try:
        return list(inspect.signature(value).parameters)
    except (TypeError, ValueError):
        return []
