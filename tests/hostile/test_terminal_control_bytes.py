"""A stranger's bytes never steer the terminal of who looks at them."""

from __future__ import annotations

import re
from pathlib import Path

from tests.hostile.attack import target, until
from tests.support.raw import exchange

_CONTROLS = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f]")
_HOSTILE = (
    b"POST /callbacks/deepgram HTTP/1.1\r\nhost: x\r\nuser-agent: \x9b2J\r\ncontent-type: a/\x9b2J\r\n"
    b"content-length: 0\r\n\r\n"
)


async def test_control_bytes_are_shown_and_never_sent_to_a_terminal(tmp_path: Path) -> None:
    with target(tmp_path) as process:
        assert (await exchange(process.port, [_HOSTILE]))[0] == 401
        assert await until(lambda: bool(process.run("rejections", "--json").items), 5)
        for words in (["rejections", "--json"], ["rejections"]):
            assert not _CONTROLS.search(process.run(*words).out)
    assert not _CONTROLS.search(process.log.decode())
