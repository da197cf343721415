"""Escape text from records, so that a stored reason or label cannot move the cursor or make a link."""

_MARKDOWN = str.maketrans({character: f"\\{character}" for character in "\\|<[]`*"})


def printable(text: str) -> str:
    """The text with each character that is not printable replaced by its escape: a backslash and its number."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def markdown(text: str) -> str:
    """The text as a cell of a Markdown table: on one line, with the characters of Markdown and HTML syntax escaped."""
    return printable(" ".join(text.split())).translate(_MARKDOWN)
