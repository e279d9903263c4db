"""What lies in `model.sig`, as OpenSSF's model-signing 1.x writes it: a Sigstore bundle (JSON) around a DSSE envelope
around an in-toto statement that names every signed file with its sha256.

Specified at github.com/secure-systems-lab/dsse and github.com/in-toto/attestation. Who signed is not asked here.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError

from rrmsdk.errors import IntegrityError
from rrmsdk.schema import value
from rrmsdk.schema.value import Value

LARGEST = 4 * 2**20  # bytes of model.sig; one of a bundle has 3 thousand
PAYLOAD_TYPE = "application/vnd.in-toto+json"

Digest = Annotated[str, StringConstraints(pattern="^[0-9a-f]{64}$")]


class _Signature(Value):
    sig: str
    keyid: Literal[""] = ""


class _Envelope(Value):
    payload: str
    payloadType: Literal["application/vnd.in-toto+json"]
    signatures: tuple[_Signature]


class _File(Value):
    mediaType: Literal["application/vnd.dev.sigstore.bundle.v0.3+json"]
    verificationMaterial: dict[str, Any]
    dsseEnvelope: _Envelope


class _Hint(Value):
    hint: Digest


class _Key(Value):
    """The verification material of a signature by a key."""

    publicKey: _Hint
    tlogEntries: tuple[()] = ()


class _Open(BaseModel):
    """A part of the statement; its version 1 says that fields which are not known are to be ignored."""

    model_config = ConfigDict(frozen=True, defer_build=True)


class _Resource(_Open):
    name: str
    digest: Digest
    algorithm: Literal["sha256"]


class _Sha256(_Open):
    sha256: Digest


class _Subject(_Open):
    digest: _Sha256


class _Serialization(_Open):
    method: Literal["files"]


class _Predicate(_Open):
    serialization: _Serialization
    resources: tuple[_Resource, ...]


class _Statement(_Open):
    kind: Literal["https://in-toto.io/Statement/v1"] = Field(alias="_type")
    predicateType: Literal["https://model_signing/signature/v1.0"]
    subject: tuple[_Subject]
    predicate: _Predicate


@dataclass(frozen=True)
class Envelope:
    """A payload and a signature over it.

    key: sha256 (hex) of the public key (PEM) that is said to have signed; None: a certificate did.
    """

    payload: bytes
    signature: bytes
    key: str | None

    @property
    def message(self) -> bytes:
        """What was signed: DSSE's pre-authentication encoding of the payload."""
        return b"DSSEv1 %d %s %d %s" % (len(PAYLOAD_TYPE), PAYLOAD_TYPE.encode(), len(self.payload), self.payload)


def read(path: Path) -> bytes:
    """The bytes of a signature file. Raises IntegrityError: it is too large, or cannot be read."""
    try:
        size = path.stat().st_size
        if size > LARGEST:
            raise IntegrityError(f"{path} has {size} bytes, which no signature has; the most that is read is {LARGEST}")
        return path.read_bytes()
    except OSError as exc:
        raise IntegrityError(f"{path} cannot be read: {exc.strerror or exc}") from exc


def envelope(content: bytes, path: Path) -> Envelope:
    """The envelope in the bytes of a signature file; `path` is for messages.

    Fields that are not signed are taken as strictly as those that are, so that a file that was touched is never good.

    Raises:
        IntegrityError: it is no signature file, or of another version.
    """
    try:
        found = _File.model_validate_json(content)
        material = found.verificationMaterial
        certified = "certificate" in material or "x509CertificateChain" in material
        key = None if certified else _Key.model_validate(material).publicKey.hint
    except ValidationError as exc:
        said = value.explain(exc, _File)
        raise IntegrityError(f"{path} is no signature file that model-signing 1.1 writes: {said}") from exc
    sealed = found.dsseEnvelope
    return Envelope(_decoded(sealed.payload, path), _decoded(sealed.signatures[0].sig, path), key)


def _decoded(text: str, path: Path) -> bytes:
    try:
        content = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as exc:
        raise IntegrityError(f"{path} is no signature file: {exc}") from exc
    if base64.b64encode(content).decode() != text:  # several spellings mean the same bytes
        raise IntegrityError(f"{path} is no signature file: its base64 is not as it was written")
    return content


def resources(payload: bytes, path: Path) -> Mapping[str, str]:
    """Names of the signed files -> sha256, in the order in which they were signed; `path` is for messages.

    Raises:
        IntegrityError: a statement of another kind, or about files outside of the folder.
    """
    try:
        statement = _Statement.model_validate_json(payload)
    except ValidationError as exc:
        said = value.explain(exc, _Statement)
        raise IntegrityError(f"{path} holds a statement of another kind than model-signing 1.x makes: {said}") from exc
    named = {resource.name: resource.digest for resource in statement.predicate.resources}
    if len(named) != len(statement.predicate.resources):
        raise IntegrityError(f"{path} names a file twice")
    for name in named:
        pure = PurePosixPath(name)
        if pure.is_absolute() or ".." in pure.parts or "\\" in name or ":" in name or pure.as_posix() != name:
            raise IntegrityError(f"{path} names a file outside of the bundle: {name}")
    if digest(named) != statement.subject[0].digest.sha256:
        raise IntegrityError(f"{path} contradicts itself: the digest of its subject is not that of its files")
    return named


def digest(named: Mapping[str, str]) -> str:
    """The subject's digest: sha256 over the files' own, in their order."""
    return hashlib.sha256(b"".join(bytes.fromhex(sha256) for sha256 in named.values())).hexdigest()
