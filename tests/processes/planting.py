"""Ways to write a text into something else, made without a look at how it will be looked for."""

import base64
import json
from collections.abc import Callable

# What stands before and after the text in base64, and shares characters with its ends.
_BEFORE, _AFTER = b"\xfb\xef", b"\xbe\x7f"

WRITINGS: dict[str, Callable[[str], str]] = {
    "raw": lambda text: text,
    "base64 at 0": lambda text: base64.b64encode(text.encode() + _AFTER).decode(),
    "base64 at 1": lambda text: base64.b64encode(_BEFORE[:1] + text.encode() + _AFTER).decode(),
    "base64 at 2": lambda text: base64.b64encode(_BEFORE + text.encode() + _AFTER).decode(),
    "base64url at 0": lambda text: base64.urlsafe_b64encode(text.encode() + _AFTER).decode(),
    "base64url at 1": lambda text: base64.urlsafe_b64encode(_BEFORE[:1] + text.encode() + _AFTER).decode(),
    "base64url at 2": lambda text: base64.urlsafe_b64encode(_BEFORE + text.encode() + _AFTER).decode(),
    "hex": lambda text: text.encode().hex(),
    "HEX": lambda text: text.encode().hex().upper(),
    "JSON": json.dumps,
    "JSON in UTF-8": lambda text: json.dumps(text, ensure_ascii=False),
}
