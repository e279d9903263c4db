"""Whether a bundle was signed by a key that is trusted, and is as it was then. Needs `cryptography` alone.

A signature does not protect from an older version that the same key has signed: it stays valid (look at `Signed.date`,
or pin a commit). A key cannot be revoked, only no longer be trusted. What changes after the check is not seen.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Collection, Sequence
from pathlib import Path

from rrmsdk import files
from rrmsdk.errors import DataError, IntegrityError, MissingExtraError
from rrmsdk.runtime import statement
from rrmsdk.schema import value
from rrmsdk.schema.bundle import CARD, SIGNATURE, UNSIGNED
from rrmsdk.schema.card import Card
from rrmsdk.schema.signed import Signed

TRUST = "RRMSDK_TRUST"
HASHES = {"secp256r1": "SHA256", "secp384r1": "SHA384", "secp521r1": "SHA512"}  # of model-signing, by the key's curve

Check = Callable[[statement.Envelope], bool]


def required(folder: Path) -> Signed | None:
    """Check the bundle in `folder` by the keys that RRMSDK_TRUST names; None where it is not set.

    It holds paths of public keys, separated as in PATH. Bundles from the Hub and from its cache are asked for a
    signature. Embedded ones are not: they ship inside the package, and are trusted as it is. Nor are checkpoints whose
    hash the package's index pins, nor a folder that the user names (`path:`), unless a server opens it.

    Raises:
        As `verify`.
    """
    keys = trusted()
    return verify(folder, keys) if keys else None


def trusted() -> tuple[Path, ...]:
    """The keys that RRMSDK_TRUST names. Raises DataError: it is set, and names none."""
    said = os.environ.get(TRUST, "")
    keys = tuple(Path(part).expanduser() for part in said.split(os.pathsep) if part.strip())
    if said and not keys:
        raise DataError(f"{TRUST}={said!r} names no key. Name files with public keys, separated by '{os.pathsep}'")
    return keys


def verify(folder: Path, keys: Sequence[Path], content: bytes | None = None) -> Signed:
    """Who of `keys` signed the bundle in `folder`, exactly as it lies there.

    The card and the files it names have to be signed. README.md, which may be edited later, and what a run leaves
    beside its bundle need not be; any other file is refused.

    Args:
        keys: files with public keys (PEM; ECDSA on P-256, P-384 or P-521).
        content: of `model.sig`; None: of the one in the folder.

    Raises:
        IntegrityError: unsigned; no signature file; signed by another key, or by none (Sigstore); the signature is not
            the key's; a file is changed, missing or extra.
        DataError: a key cannot be read, or is of another kind.
        MissingExtraError
    """
    path = Path(folder) / SIGNATURE
    checks = dict(_public(key) for key in keys)
    content = _content(path) if content is None else content
    envelope = statement.envelope(content, path)
    if envelope.key is None:
        raise IntegrityError(
            f"{folder} is signed by a certificate, as Sigstore does, not by a key. Check who it was: "
            f"rrmsdk verify-signature path:{folder} --identity WHO --issuer URL"
        )
    if envelope.key not in checks:
        raise IntegrityError(
            f"{folder} is signed by another key, {envelope.key}; trusted: {', '.join(checks) or 'none'}"
        )
    if not checks[envelope.key](envelope):
        raise IntegrityError(f"{path} was changed or forged: the key {envelope.key}, which it names, did not sign it")
    return fits(folder, content=content).model_copy(update={"key": envelope.key})


def fits(folder: Path, present: Collection[str] | None = None, content: bytes | None = None) -> Signed:
    """What `model.sig` says of the files in `folder`, all compared. WHO signed is not looked at.

    Args:
        present: names of the files that count; None: all that lie there.
        content: of `model.sig`; None: of the one in the folder.

    Raises:
        IntegrityError: as `verify`, but for the key.
    """
    folder, path = Path(folder), Path(folder) / SIGNATURE
    content = _content(path) if content is None else content
    signed = statement.resources(statement.envelope(content, path).payload, path)
    if CARD not in signed:
        raise IntegrityError(f"{path} is no signature of a bundle: it does not cover {CARD}")
    there = _present(folder) if present is None else set(present)
    if missing := [name for name in signed if name not in there or not (folder / name).is_file()]:
        raise IntegrityError(f"{folder}: {_some(missing)} missing, but signed")
    _no_extra(folder, there - set(signed))
    for name, promised in signed.items():
        try:
            found = files.sha256(folder / name)
        except OSError as exc:
            raise IntegrityError(f"{folder / name} cannot be read: {exc.strerror or exc}") from exc
        if found != promised:
            raise IntegrityError(f"{folder / name} was changed: it has sha256 {found}, signed was {promised}")
    card = value.read(Card, folder / CARD)
    return Signed(name=card.name, date=card.date, digest=statement.digest(signed), files=tuple(signed))


def alone(folder: Path, names: Collection[str]) -> None:
    """Raises IntegrityError: in the folder lies more than `names` and what no signature covers."""
    _no_extra(folder, _present(folder) - set(names))


def _no_extra(folder: Path, unnamed: Collection[str]) -> None:
    if extra := sorted(name for name in unnamed if name.split("/")[0] not in UNSIGNED):
        raise IntegrityError(f"{folder}: {_some(extra)} extra, no part of what is signed. Take it away")


def _content(path: Path) -> bytes:
    if not path.is_file():
        raise IntegrityError(
            f"{path.parent} is not signed: it has no {SIGNATURE}. Its owner signs with: rrmsdk sign path:DIR --key KEY"
        )
    return statement.read(path)


def _present(folder: Path) -> set[str]:
    """Names of all that lies in the folder, links to folders among them; what need not be signed is not entered."""
    found = set()
    for place, inner, names in os.walk(folder):
        here = Path(place)
        found |= {(here / name).relative_to(folder).as_posix() for name in names}
        found |= {(here / name).relative_to(folder).as_posix() for name in inner if (here / name).is_symlink()}
        if here == folder:
            inner[:] = [name for name in inner if name not in UNSIGNED]
    return found


def _some(names: Sequence[str]) -> str:
    verb = "is" if len(names) == 1 else "are"
    return f"{', '.join(names[:4])}{', ...' if len(names) > 4 else ''} {verb}"


def _public(path: Path) -> tuple[str, Check]:
    """A public key's fingerprint, and whether it made a signature. Raises DataError, MissingExtraError."""
    try:
        from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
        from cryptography.hazmat.primitives import hashes
        from cryptography.hazmat.primitives.asymmetric import ec
        from cryptography.hazmat.primitives.serialization import load_pem_public_key
    except ImportError as exc:
        raise MissingExtraError("trust", "checking a signature") from exc
    text = key_text(path)
    if b"PRIVATE KEY" in text:
        raise DataError(f"{path} is a private key, which no checker should hold. Name the public one: {path}.pub")
    try:
        key = load_pem_public_key(text)
    except (ValueError, UnsupportedAlgorithm) as exc:
        raise DataError(f"{path} is no public key (PEM): {exc}. Make a pair: rrmsdk sign --new-key PATH") from exc
    if not isinstance(key, ec.EllipticCurvePublicKey) or key.curve.name not in HASHES:
        raise DataError(f"{path} is a key of another kind; bundles are signed by {KINDS}")
    algorithm = ec.ECDSA(getattr(hashes, HASHES[key.curve.name])())

    def made(envelope: statement.Envelope) -> bool:
        try:
            key.verify(envelope.signature, envelope.message, algorithm)
        except InvalidSignature:
            return False
        return True

    return fingerprint(key), made


KINDS = "ECDSA on P-256, P-384 or P-521"


def key_text(path: Path) -> bytes:
    """The bytes of a key's file. Raises DataError."""
    try:
        with Path(path).open("rb") as file:
            return file.read(2**16)
    except OSError as exc:
        raise DataError(f"the key {path} cannot be read: {exc.strerror or exc}") from exc


def fingerprint(key: object) -> str:
    """What model-signing names a public key by: sha256 of its PEM."""
    from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

    pem = key.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)  # type: ignore[attr-defined]
    return hashlib.sha256(pem).hexdigest()
