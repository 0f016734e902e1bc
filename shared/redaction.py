"""What must not stand in a log line, taken out of it: keys, passwords, signed addresses, images, what clients send.

It is the last step before a line is written, whoever has made it: a library's line as well as ours. Patterns find what
looks like a secret; the process's own secrets are found to the letter.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from typing import Final

HIDDEN: Final = "[redacted]"

_SHORTEST_SECRET_CHARS = 6
"""Shorter ones would be found in ordinary words."""
_PATTERNS: tuple[tuple[tuple[str, ...], re.Pattern[str], str], ...] = (
    # what a validator says about a value that it refuses: pydantic's sentence, and its list of errors
    (("input_value=",), re.compile(r"input_value=.*?(?=, input_type=|\]|$)", re.DOTALL), f"input_value={HIDDEN}"),
    (
        ("'input'", '"input"'),
        re.compile(r"""(['"]input['"]:\s*).*?(?=,\s*['"](?:ctx|url|loc|msg|type)['"]:|\}\]|\}$|$)""", re.DOTALL),
        rf"\1{HIDDEN}",
    ),
    (
        ("authorization", "x-api-key", "cookie"),
        re.compile(
            r"""(?i)\b((?:proxy-)?authorization|x-api-key|(?:set-)?cookie)"""
            r"""(['"]?\s*[:=,]\s*(?:b(?=['"]))?['"]?)[^'"\r\n]*"""
        ),
        rf"\1\2{HIDDEN}",
    ),
    (("bearer", "basic"), re.compile(r"(?i)\b(bearer|basic)\s+[a-z0-9._~+/=-]{6,}"), rf"\1 {HIDDEN}"),
    (("sk-", "hf_", "ghp_"), re.compile(r"\b(sk-|hf_|ghp_)[A-Za-z0-9][A-Za-z0-9_-]{7,}"), rf"\1{HIDDEN}"),
    (("://",), re.compile(r"(\w://)[^\s/@'\"]+@"), rf"\1{HIDDEN}@"),
    (("://",), re.compile(r"(https?://[^\s?#'\"<>]+)\?[^\s'\"<>]*"), rf"\1?{HIDDEN}"),
    ((";base64,",), re.compile(r";base64,[A-Za-z0-9+/=_-]+"), f";base64,{HIDDEN}"),
    (
        ("?", "&"),
        re.compile(r"(?i)([?&](?:[a-z-]*(?:token|key|secret|signature|password|credential)|sig)=)[^&\s'\"]+"),
        rf"\1{HIDDEN}",
    ),
)
"""Words without one of which the pattern cannot match (in lower case), the pattern, what is shown."""


def redactor(secrets: Iterable[str] = ()) -> Callable[[str], str]:
    """From a text to one that may be logged. `secrets` are this process's own, to be found to the letter.

    Costs some microseconds per line of ordinary length.
    """
    known = sorted({secret for secret in secrets if len(secret) >= _SHORTEST_SECRET_CHARS}, key=len, reverse=True)
    own = re.compile("|".join(map(re.escape, known))) if known else None

    def redacted(text: str) -> str:
        if own is not None:
            text = own.sub(HIDDEN, text)
        lower = text.lower()
        for words, pattern, shown in _PATTERNS:
            if any(word in lower for word in words):
                text = pattern.sub(shown, text)
        return text

    return redacted
