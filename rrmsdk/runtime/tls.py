"""A certificate and its key, checked before anything waits for connections."""

from __future__ import annotations

import ssl
from dataclasses import dataclass
from pathlib import Path

from rrmsdk.errors import FieldError


@dataclass(frozen=True)
class Tls:
    """cert: PEM, the server's first, then those that lead to a root. key: PEM, without a password."""

    cert: Path
    key: Path


def open_tls(cert: Path | None, key: Path | None) -> Tls | None:
    """None where neither is given. Raises FieldError: one is missing, or they are no certificate and its key."""
    if cert is None and key is None:
        return None
    if cert is None or key is None:
        raise FieldError("a certificate and its key go together: give --tls-cert FILE and --tls-key FILE, or neither")
    _read(cert, "certificate")
    if b"ENCRYPTED" in _read(key, "key"):
        raise FieldError(f"the TLS key {key} asks for a password. Write one without: openssl pkey -in {key} -out FILE")
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(cert, key, password="")
    except ssl.SSLError as exc:
        if exc.reason == "KEY_VALUES_MISMATCH":
            raise FieldError(f"the TLS key {key} is not that of the certificate {cert}") from exc
        raise FieldError(f"{cert} and {key} are no certificate and key in PEM: {exc.reason or exc}") from exc
    return Tls(cert, key)


def _read(path: Path, what: str) -> bytes:
    try:
        return path.read_bytes()
    except OSError as exc:
        raise FieldError(f"the TLS {what} {path} cannot be read: {exc.strerror or exc}") from exc
