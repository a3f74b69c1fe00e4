"""Where the receivers of a crash test keep things: embedded, or in PostgreSQL and S3."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tests.support import s3
from tests.support.fleet import Shared, shared
from tests.support.kept import Kept, SharedKept
from tests.support.s3 import Weed, credentials

weed, s3_credentials = s3.weed, s3.s3_credentials


@dataclass(frozen=True)
class Place:
    """What a test's settings and processes need for it."""

    settings: str = ""
    environ: dict[str, str] = field(default_factory=dict)
    weed: Weed | None = None
    shared: Shared | None = None

    def kept(self, folder: Path) -> Kept:
        """Return what is kept there."""
        if self.weed is None or self.shared is None:
            return Kept(folder)
        return SharedKept(folder, self.weed, self.shared)


@pytest.fixture
def place(request: pytest.FixtureRequest) -> Iterator[Place]:
    """By the parameter: `embedded` or `shared`."""
    if request.param == "embedded":
        yield Place()
        return
    request.getfixturevalue("s3_credentials")
    weed = request.getfixturevalue("weed")
    with shared(weed) as made:
        yield Place(made.settings, credentials(), weed, made)
