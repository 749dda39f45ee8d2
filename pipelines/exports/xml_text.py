"""Text in XML 1.0: what it cannot hold is replaced, what it reserves is escaped."""

from __future__ import annotations

import re
from xml.sax.saxutils import escape, quoteattr

_FORBIDDEN = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


def attribute(text: object) -> str:
    """An attribute's value in quotes. Characters that XML cannot hold become U+FFFD."""
    return quoteattr(_FORBIDDEN.sub("\ufffd", str(text)), {"\n": "&#10;", "\r": "&#13;", "\t": "&#9;"})


def content(text: object) -> str:
    """The text of an element."""
    return escape(_FORBIDDEN.sub("\ufffd", str(text)), {"\r": "&#13;"})
