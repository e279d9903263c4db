"""What a signature that was checked says."""

from __future__ import annotations

from rrmsdk.schema.value import Value


class Signed(Value):
    """A bundle was signed, by a key or by an identity, and is as it was then.

    name, date: of the card, which is signed too.
    digest: sha256 over the sha256 of all signed files, in the order of `files`; names this state of the bundle.
    key: sha256 of the public key (PEM); None: it was signed through Sigstore.
    identity, issuer: who signed, and who vouched for that; None: it was signed with a key.
    """

    name: str
    date: str
    digest: str
    files: tuple[str, ...]
    key: str | None = None
    identity: str | None = None
    issuer: str | None = None

    @property
    def by(self) -> str:
        return f"the key {self.key}" if self.key else f"{self.identity} ({self.issuer})"
