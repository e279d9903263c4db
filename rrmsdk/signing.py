"""Verbs that sign a bundle, and that say who did. They write and read the format of OpenSSF's model-signing."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rrmsdk import files
from rrmsdk.errors import DataError, FieldError, HubError, IntegrityError, MissingExtraError, RrmError, SaveError
from rrmsdk.opening import opened, owned, typed
from rrmsdk.runtime import signature
from rrmsdk.schema import value
from rrmsdk.schema.bundle import CARD, SIGNATURE, UNSIGNED, Bundle
from rrmsdk.schema.signed import Signed

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey

PASSWORD = "RRMSDK_KEY_PASSWORD"


@dataclass(frozen=True)
class _Key:
    """A private key that signs. password: None: it has none. public: its other half, PEM."""

    path: Path
    password: bytes | None
    public: bytes


@typed
def sign(
    model: str | Path | Bundle,
    *,
    key: str | Path | None = None,
    password: str | None = None,
    sigstore: bool = False,
    identity_token: str | None = None,
    trust_config: str | Path | None = None,
    out: str | Path | None = None,
) -> Bundle:
    """Sign a bundle as it is now: its card and the files the card names, in `model.sig`.

    Whatever changes the bundle later (an attack, an export) has to come first, or be followed by another `sign`.
    Signing through Sigstore is model-signing's; it needs the network and an account, and no test has run it.

    Args:
        model, out: as in `verify`.
        key: file of a private key (PEM; ECDSA on P-256, P-384 or P-521); `rrmsdk sign --new-key PATH` makes one.
        password: of the key; None: that in RRMSDK_KEY_PASSWORD.
        sigstore: instead of a key: a certificate on an identity, entered into Sigstore's public log.
        identity_token: an OpenID Connect token for that; None: that of the CI this runs in, else a browser asks.
        trust_config: of a Sigstore of one's own, see `verify_signature`.

    Raises:
        FieldError: not one of `key` and `sigstore`.
        DataError: the key cannot be read or used.
        IntegrityError: the bundle is damaged, or holds a file that nobody would have signed.
        HubError: Sigstore could not be reached, or refused.
        MissingExtraError, SaveError, and as `verify`.
    """
    if (key is None) != sigstore:
        raise FieldError("sign with a key or through Sigstore: key='release.pem' or sigstore=True, one of them")
    if (identity_token is not None or trust_config is not None) and not sigstore:
        raise FieldError("an identity_token and a trust_config are for sigstore=True")
    _needs_model_signing("sign")
    signer = None if key is None else _key(Path(key).expanduser(), _password(password))
    bundle = owned(model, out)
    signature.alone(bundle.path, (CARD, *bundle.card.files))
    with tempfile.TemporaryDirectory(prefix="rrmsdk-signing-") as beside:
        if signer is None:
            content = _by_sigstore(bundle, Path(beside) / SIGNATURE, identity_token, _trust(trust_config))
            signature.fits(bundle.path, content=content)
        else:
            content = _by_key(bundle, Path(beside) / SIGNATURE, signer)
            (Path(beside) / "key.pub").write_bytes(signer.public)
            signature.verify(bundle.path, [Path(beside) / "key.pub"], content)
    files.write_bytes(bundle.path / SIGNATURE, content)
    return bundle


@typed
def verify_signature(
    model: str | Path | Bundle,
    *,
    keys: str | Path | Sequence[str | Path] | None = None,
    identity: str | None = None,
    issuer: str | None = None,
    trust_config: str | Path | None = None,
) -> Signed:
    """Who signed a bundle, and that it is as it was then.

    What a signature does not say: see `rrmsdk.runtime.signature`. With keys only the extra `trust` is needed, and no
    network. The check of an identity is model-signing's, and needs the network or a `trust_config`.

    Args:
        keys: files of public keys (PEM), any of which may have signed; None: those in RRMSDK_TRUST.
        identity, issuer: instead of keys: who signed through Sigstore (an e-mail address, a workflow's URL), and the
            URL of who vouched for that, such as https://accounts.google.com.
        trust_config: whose certificates and logs an identity is checked by, as a file (Sigstore's ClientTrustConfig,
            JSON): those of a Sigstore of one's own, or of the public one where there is no network. None: those that
            the public one publishes today.

    Raises:
        FieldError: neither keys nor an identity, or both.
        IntegrityError, DataError: see `rrmsdk.runtime.signature.verify`.
        HubError: Sigstore could not be reached.
        MissingExtraError, and as `pull`.
    """
    if (identity is None) != (issuer is None):
        raise FieldError("an identity is checked together with its issuer: give both identity and issuer")
    if identity is not None and keys is not None:
        raise FieldError("check keys or an identity, not both")
    if trust_config is not None and identity is None:
        raise FieldError("a trust_config is for an identity; keys need none")
    if identity is not None and issuer is not None:
        _needs_model_signing("verify_signature(identity=...)")
        folder = opened(model).path
        found = signature.fits(folder)  # first: it lets no name lead out of the folder
        _by_whom(folder, identity, issuer, _trust(trust_config))
        return found.model_copy(update={"identity": identity, "issuer": issuer})
    if keys is None:
        wanted = signature.trusted()
    else:
        given = [keys] if isinstance(keys, str | Path) else value.several("keys", keys, "['release.pem.pub']")
        wanted = tuple(Path(str(key)).expanduser() for key in given)
    if not wanted:
        raise FieldError(f"name the keys that you trust: keys=['release.pem.pub'] (--key), or {signature.TRUST}")
    return signature.verify(opened(model).path, wanted)


def new_key(path: str | Path, password: str | None = None) -> Path:
    """Make a key pair (ECDSA on P-256): the private key at `path`, for this user alone, the public one at `path`.pub.

    Args:
        password: to encrypt the private key; None: that in RRMSDK_KEY_PASSWORD, and none where that is not set.

    Returns:
        The public key's path.

    Raises:
        SaveError: one of the files is there already, or cannot be written; nothing was.
        MissingExtraError
    """
    if find_spec("cryptography") is None:
        raise MissingExtraError("sign", "rrmsdk sign --new-key")
    from cryptography.hazmat.primitives import serialization as pem
    from cryptography.hazmat.primitives.asymmetric import ec

    secret = _password(password)
    key = ec.generate_private_key(ec.SECP256R1())
    locked = pem.BestAvailableEncryption(secret) if secret else pem.NoEncryption()
    private = key.private_bytes(pem.Encoding.PEM, pem.PrivateFormat.PKCS8, locked)
    path = Path(path).expanduser()
    public = path.with_name(f"{path.name}.pub")
    if public.exists():
        raise SaveError(f"{public} is there already, and is not overwritten. Choose another name for the key")
    _new(path, private, 0o600)
    try:
        _new(public, _public_pem(key), 0o644)
    except SaveError:
        path.unlink()
        raise
    return public


def _new(path: Path, content: bytes, mode: int) -> None:
    """Write a file where there is none; renaming would put it over one that is. Raises SaveError."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "wb") as file:
            file.write(content)
    except FileExistsError as exc:
        raise SaveError(f"{path} is there already, and is not overwritten. Choose another name for the key") from exc
    except OSError as exc:
        raise SaveError(f"could not write {path}: {exc.strerror or exc}") from exc


def _password(given: str | None) -> bytes | None:
    text = os.environ.get(PASSWORD) if given is None else given
    return text.encode() if text else None


def _key(path: Path, password: bytes | None) -> _Key:
    """The private key at `path`. Raises DataError: bundles cannot be signed with it."""
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    text = signature.key_text(path)
    if b"PUBLIC KEY" in text:
        raise DataError(f"{path} is a public key; it is the private one that signs")
    locked = b"ENCRYPTED" in text  # PKCS 8 says so in its first line, the older format in its second
    password = password if locked else None
    try:
        key = load_pem_private_key(text, password)
    except TypeError as exc:
        raise DataError(f"{path} is locked by a password: give password= (--password), or set {PASSWORD}") from exc
    except (ValueError, UnsupportedAlgorithm) as exc:
        why = "the password is wrong, or it is damaged" if locked else str(exc)
        raise DataError(f"{path} cannot be read as a private key (PEM): {why}") from exc
    if not isinstance(key, ec.EllipticCurvePrivateKey) or key.curve.name not in signature.HASHES:
        raise DataError(
            f"{path} is a key of another kind; bundles are signed by {signature.KINDS}. Make one: "
            "rrmsdk sign --new-key PATH"
        )
    return _Key(path, password, _public_pem(key))


def _public_pem(key: EllipticCurvePrivateKey) -> bytes:
    from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

    return key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)


def _needs_model_signing(what: str) -> None:
    if find_spec("model_signing") is None or find_spec("OpenSSL") is None:
        raise MissingExtraError("sign", f"rrmsdk.{what}")


def _by_key(bundle: Bundle, to: Path, key: _Key) -> bytes:
    from model_signing import signing

    # It hands the password on to `cryptography`, which takes bytes, whatever its annotation says.
    use_key: Any = signing.Config().use_elliptic_key_signer
    use_key(private_key=key.path, password=key.password).set_hashing_config(_hashing(bundle)).sign(bundle.path, to)
    return to.read_bytes()


def _by_sigstore(bundle: Bundle, to: Path, token: str | None, trust: Path | None) -> bytes:
    from model_signing import signing

    with _reaching("sign"):
        config = signing.Config().use_sigstore_signer(
            use_ambient_credentials=True, identity_token=token, trust_config=trust
        )
        config.set_hashing_config(_hashing(bundle)).sign(bundle.path, to)
    return to.read_bytes()


def _trust(given: str | Path | None) -> Path | None:
    """Raises DataError: it cannot be read, or is no configuration of Sigstore's clients."""
    if given is None:
        return None
    from sigstore.models import ClientTrustConfig

    path = Path(given).expanduser()
    try:
        ClientTrustConfig.from_json(path.read_text())
    except OSError as exc:
        raise DataError(f"the trust_config {path} cannot be read: {exc.strerror or exc}") from exc
    except Exception as exc:
        raise DataError(f"{path} is no ClientTrustConfig of Sigstore (JSON): {_said(exc)}") from exc
    return path


def _by_whom(folder: Path, identity: str, issuer: str, trust: Path | None) -> None:
    """Raises IntegrityError: not by them, or not what lies there; HubError: who signs today cannot be asked."""
    from model_signing import hashing, verifying

    with _reaching("check who signed"):
        config = verifying.Config().use_sigstore_verifier(identity=identity, oidc_issuer=issuer, trust_config=trust)
        # Which files may be extra is judged before; the Hub's cache consists of links.
        config.set_hashing_config(hashing.Config().set_allow_symlinks(True)).set_ignore_unsigned_files(True)
        try:
            config.verify(folder, folder / SIGNATURE)
        except Exception as exc:
            if _is_network(exc):
                raise
            raise IntegrityError(f"{folder} is not signed by {identity} ({issuer}): {_said(exc)}") from exc


def _hashing(bundle: Bundle) -> Any:
    """model-signing's way to hash a folder, for the card and the files it names, whatever else lies there."""
    from model_signing import hashing

    names = (CARD, *sorted(bundle.card.files))

    class Exactly(hashing.Config):
        def hash(self, model_path: Any, *, files_to_hash: Any = None) -> Any:
            return super().hash(model_path, files_to_hash=[Path(model_path) / name for name in names])

    # What is to be ignored is written into the signature: model-signing's own check needs it.
    return Exactly().set_ignored_paths(paths=UNSIGNED, ignore_git_paths=False).set_allow_symlinks(True)


@contextmanager
def _reaching(what: str) -> Iterator[None]:
    """Errors of Sigstore as ours: it shares no base class for them, and lets through those of the libraries below."""
    try:
        yield
    except RrmError:
        raise
    except Exception as exc:
        if _is_network(exc):
            raise HubError(
                f"could not {what} through Sigstore: it could not be reached ({_said(exc)}). Check the network"
            ) from exc
        raise HubError(f"could not {what} through Sigstore: {_said(exc)}") from exc


def _is_network(exc: BaseException) -> bool:
    from sigstore.errors import NetworkError, TUFError

    return isinstance(exc, NetworkError | TUFError | OSError)  # those of `requests` are OSErrors


def _said(exc: BaseException) -> str:
    line = next((line for line in str(exc).splitlines() if line.strip()), "no details")
    return f"{type(exc).__name__}: {line.strip()}"
