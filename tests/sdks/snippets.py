"""Runs snippets in one process: JSON on standard input, code by name; prints for each what it printed last, or its error.

A program of its own, so that no provider's package is loaded into the tests.
"""

import contextlib
import io
import json
import sys
import traceback

for name, code in json.load(sys.stdin).items():
    told, printed = {"name": name}, io.StringIO()
    try:
        with contextlib.redirect_stdout(printed):
            exec(compile(code, name, "exec"), {"__name__": name})  # noqa: S102
        told["job"] = printed.getvalue().split()[-1]
    except Exception:
        told["error"] = traceback.format_exc()[-1500:]
    print(json.dumps(told), flush=True)
