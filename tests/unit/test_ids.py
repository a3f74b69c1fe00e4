"""Ids of processes that were forked from one which had imported receiver, as preloading servers do."""

from __future__ import annotations

import subprocess
import sys

import pytest

FORK = """
import os
from receiver.core.event import Rejection, new_id
from receiver.storage.store import events

rejection = Rejection(source="s", at=7, status=401, kind="wrong", reason="", method="POST", peer="", content_type="", user_agent="")
made = {"event": lambda: new_id("evt", 7), "rejection": lambda: events.rejection_id(rejection)}["%s"]
for _ in range(3):
    if os.fork() == 0:
        os.write(1, f"{made()}\\n".encode())
        os._exit(0)
    os.wait()
print(made())
"""


@pytest.mark.parametrize("of", ["event", "rejection"])
def test_forked_processes_make_ids_of_their_own(of: str) -> None:
    """Two events of one id would be taken for one, and the second be lost."""
    said = subprocess.run([sys.executable, "-c", FORK % of], capture_output=True, text=True, check=True)
    ids = said.stdout.split()
    assert len(ids) == len({*ids}) == 4
