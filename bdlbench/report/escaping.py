"""Text of somebody else's, shown as text: a stored reason or label must not move a cursor or make a link."""

_MARKDOWN = str.maketrans({character: f"\\{character}" for character in "\\|<[]`*"})


def printable(text: str) -> str:
    """The text with every character that is not printable spelled out, as a backslash and its number."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def markdown(text: str) -> str:
    """The text as a cell of a Markdown table, on one line and with nothing that Markdown or HTML would act on."""
    return printable(" ".join(text.split())).translate(_MARKDOWN)
