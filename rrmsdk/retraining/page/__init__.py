"""The page of `rrmsdk schedule ui`. It holds nothing of any job; it asks for that itself."""

from __future__ import annotations

import base64
import hashlib
from pathlib import Path

_HERE = Path(__file__).parent
_SCRIPT, _STYLE = ((_HERE / name).read_text(encoding="utf-8") for name in ("page.js", "page.css"))

HTML = (_HERE / "page.html").read_text(encoding="utf-8").replace("/*STYLE*/", _STYLE).replace("/*SCRIPT*/", _SCRIPT)

_HASH = base64.b64encode(hashlib.sha256(_SCRIPT.encode()).digest()).decode()
# Nothing is loaded from anywhere, no other page may frame this one, and no other script runs in it.
POLICY = (
    f"default-src 'none'; script-src 'sha256-{_HASH}'; style-src 'unsafe-inline'; img-src data:; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
