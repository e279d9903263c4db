"""Keys, and signatures over any statement, as somebody makes them who does not use this library."""

from __future__ import annotations

import base64
import hashlib
import json
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives import serialization as pem
from cryptography.hazmat.primitives.asymmetric import ec

from rrmsdk import files
from rrmsdk.schema.bundle import CARD, Bundle

PAYLOAD_TYPE = "application/vnd.in-toto+json"


def write_key(path: Path, key: Any = None, password: bytes | None = None) -> Path:
    """A private key at `path` (by default a new one on P-256), its public half beside it in PATH.pub."""
    key = key or ec.generate_private_key(ec.SECP256R1())
    locked = pem.BestAvailableEncryption(password) if password else pem.NoEncryption()
    path.write_bytes(key.private_bytes(pem.Encoding.PEM, pem.PrivateFormat.PKCS8, locked))
    public = key.public_key().public_bytes(pem.Encoding.PEM, pem.PublicFormat.SubjectPublicKeyInfo)
    path.with_name(f"{path.name}.pub").write_bytes(public)
    return path


def statement(bundle: Bundle, **names: str) -> dict[str, Any]:
    """What model-signing states of a bundle; `names` are further files with their sha256, or others than the true."""
    named = {name: files.sha256(bundle.path / name) for name in sorted((CARD, *bundle.card.files))} | names
    root = hashlib.sha256(b"".join(bytes.fromhex(sha256) for sha256 in named.values())).hexdigest()
    return {
        "_type": "https://in-toto.io/Statement/v1",
        "subject": [{"name": "model", "digest": {"sha256": root}}],
        "predicateType": "https://model_signing/signature/v1.0",
        "predicate": {
            "serialization": {"method": "files", "hash_type": "sha256", "allow_symlinks": False},
            "resources": [{"name": n, "algorithm": "sha256", "digest": sha256} for n, sha256 in named.items()],
        },
    }


def sealed(key: Path, payload: dict[str, Any] | bytes) -> dict[str, Any]:
    """A signature file in which the private key at `key` really signs `payload`."""
    private: Any = pem.load_pem_private_key(key.read_bytes(), None)
    content = payload if isinstance(payload, bytes) else json.dumps(payload).encode()
    message = f"DSSEv1 {len(PAYLOAD_TYPE)} {PAYLOAD_TYPE} {len(content)} ".encode() + content
    public = private.public_key().public_bytes(pem.Encoding.PEM, pem.PublicFormat.SubjectPublicKeyInfo)
    signature = private.sign(message, ec.ECDSA(hashes.SHA256()))
    return {
        "mediaType": "application/vnd.dev.sigstore.bundle.v0.3+json",
        "verificationMaterial": {
            "publicKey": {"hint": hashlib.sha256(public).hexdigest()},
            "tlogEntries": [],
        },
        "dsseEnvelope": {
            "payload": base64.b64encode(content).decode(),
            "payloadType": PAYLOAD_TYPE,
            "signatures": [{"sig": base64.b64encode(signature).decode(), "keyid": ""}],
        },
    }
