"""Capitalizes the first letter of a message unless it belongs to a name."""

from __future__ import annotations

import re

_WORD = re.compile(r"[A-Za-z'-]+[.,:;]?")


def sentence_case(text: str, layer: str = "") -> str:
    """The text with a capital first letter; a layer's name (`rnn.l0`), an identifier or a symbol keeps its case.

    Example:
        >>> sentence_case("reach is 3 steps"), sentence_case("rnn.l0 is called 20 times")
        ('Reach is 3 steps', 'rnn.l0 is called 20 times')
    """
    first = text.partition(" ")[0]
    if not _WORD.fullmatch(first) or first.rstrip(".,:;") == layer:
        return text
    return text[:1].upper() + text[1:]
