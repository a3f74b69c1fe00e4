"""`python -m tests.hostile.limited SOFT HARD WORDS…`: receiver with so many file descriptors."""

from __future__ import annotations

import resource
import sys

from receiver.__main__ import main

if __name__ == "__main__":
    soft, hard, *words = sys.argv[1:]
    resource.setrlimit(resource.RLIMIT_NOFILE, (int(soft), int(hard)))
    sys.argv = ["receiver", *words]
    main()
