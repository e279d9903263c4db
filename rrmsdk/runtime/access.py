"""Who may ask: bearer tokens out of files, which may change while the server runs."""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
from dataclasses import dataclass, field
from pathlib import Path

from rrmsdk.errors import FieldError

SHORTEST = 16  # letters of a token; one made by `openssl rand -hex 16` has 32


@dataclass
class Tokens:
    """The tokens in a file, one a line: while one takes the place of another both may stand in it.

    It is read again whenever it changed. Where it cannot be read, or holds none, nobody is let in.
    """

    path: Path
    _seen: tuple[int, int, int] | None = None
    _digests: tuple[bytes, ...] = field(default=(), repr=False)

    def admit(self, token: str) -> bool:
        """Whether it is one of them. Every comparison takes as long as any other."""
        self._refresh()
        given = _digest(token.encode())
        return sum(hmac.compare_digest(given, known) for known in self._digests) > 0

    def _refresh(self) -> None:
        try:
            about = self.path.stat()
            seen = (about.st_mtime_ns, about.st_size, about.st_ino)
            if seen != self._seen:
                self._digests = tuple(_digest(line) for line in _lines(self.path))
                self._seen = seen
        except OSError:
            self._digests, self._seen = (), None


def open_tokens(path: Path) -> Tokens:
    """Raises FieldError: the file cannot be read, or holds no token."""
    try:
        found = _lines(path)
    except OSError as exc:
        raise FieldError(
            f"the file of tokens {path} cannot be read: {exc.strerror or exc}. Make one: openssl rand -hex 16 > {path}"
        ) from exc
    if not found:
        raise FieldError(
            f"{path} holds no token of {SHORTEST} letters or more, one a line. Make one: openssl rand -hex 16 > {path}"
        )
    return Tokens(path)


def loopback(host: str) -> bool:
    """Whether only this machine can ask there."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


@dataclass(frozen=True)
class Access:
    """Whose tokens open what. tokens: None: everybody may ask. admin: None: nobody may change which version answers."""

    tokens: Tokens | None = None
    admin: Tokens | None = None

    def may_ask(self, authorization: str | None) -> bool:
        token = _bearer(authorization)
        return self.tokens is None or (token is not None and self.tokens.admit(token)) or self.may_change(authorization)

    def may_change(self, authorization: str | None) -> bool:
        token = _bearer(authorization)
        return self.admin is not None and token is not None and self.admin.admit(token)


def _bearer(authorization: str | None) -> str | None:
    scheme, _, token = (authorization or "").partition(" ")
    return token.strip() if scheme.lower() == "bearer" and token.strip() else None


def _lines(path: Path) -> list[bytes]:
    with path.open("rb") as file:
        lines = file.read(1 << 16).split()
    return [line for line in lines if len(line) >= SHORTEST]


def _digest(token: bytes) -> bytes:
    return hashlib.sha256(token).digest()
