"""A Hub on 127.0.0.1: the wire protocol that real clients speak, and the troubles that real networks have.

It stands for the public Hub, which tests may not reach.
"""

from tests.hub_server.server import HubServer
from tests.hub_server.storage import Blob, Commit, Repo
from tests.hub_server.wire import Cut, Refuse, Trickle, Trouble

__all__ = ["Blob", "Commit", "Cut", "HubServer", "Refuse", "Repo", "Trickle", "Trouble"]
