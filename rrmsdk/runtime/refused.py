"""What a client of the server is told instead of an answer."""

from __future__ import annotations


class Refused(Exception):
    """A status of HTTP and a sentence for the client, in which nothing of the server's own shows.

    retry_after: seconds after which it is worth asking again; None: it is not.
    unread: the client may still be sending its body.
    """

    def __init__(self, status: int, says: str, *, retry_after: int | None = None, unread: bool = False) -> None:
        super().__init__(says)
        self.status = status
        self.says = says
        self.retry_after = retry_after
        self.unread = unread
