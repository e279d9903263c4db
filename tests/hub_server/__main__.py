"""A Hub in a process of its own: python -m tests.hub_server REPO FOLDER. Prints address and commit; ends with stdin."""

import sys
from pathlib import Path

from tests.hub_server import HubServer

repo, folder = sys.argv[1], Path(sys.argv[2])
with HubServer() as server:
    found = {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    print(server.endpoint, server.put(repo, found).oid, flush=True)
    sys.stdin.read()
