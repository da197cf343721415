"""Escape text from records, so that a stored reason or label cannot move the cursor or make a link."""

import re

_MARKDOWN = str.maketrans({character: f"\\{character}" for character in "\\|<[]`*"})


_LATEX = {
    "\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_", "{": r"\{", "}": r"\}",
    "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "<": r"\textless{}", ">": r"\textgreater{}",
    "|": r"\textbar{}", '"': r"\textquotedbl{}", "±": r"$\pm$", "≥": r"$\ge$", "≤": r"$\le$", "–": "--",
    "…": r"\ldots{}", "†": r"\dag{}", "²": r"$^2$",
}  # fmt: skip
_MINUS = re.compile(r"(?<![\w-])-(?=\d)")


def printable(text: str) -> str:
    """The text with each character that is not printable replaced by its escape: a backslash and its number."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def markdown(text: str) -> str:
    """The text as a cell of a Markdown table: on one line, with the characters of Markdown and HTML syntax escaped."""
    return printable(" ".join(text.split())).translate(_MARKDOWN)


def latex(text: str) -> str:
    """The text for LaTeX: on one line, with the characters of its syntax escaped and a minus before a digit as such."""
    escaped = "".join(_LATEX.get(character, character) for character in printable(" ".join(text.split())))
    return _MINUS.sub("$-$", escaped)
