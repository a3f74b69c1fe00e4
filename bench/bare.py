"""The bare baselines: a Starlette route that reads the body, and an aiohttp loop that posts bodies.

python -m bench.bare serve PORT
python -m bench.bare post PORT COUNT IN_FLIGHT BYTES
"""

from __future__ import annotations

import asyncio
import json
import sys
import time

PORT_LINE = "listening"


def serve(port: int) -> None:
    """Serve `POST /bare`: reads the body, answers its length."""
    import uvicorn
    from starlette.applications import Starlette
    from starlette.requests import Request
    from starlette.responses import JSONResponse
    from starlette.routing import Route

    async def bare(request: Request) -> JSONResponse:
        return JSONResponse({"bytes": len(await request.body())})

    app = Starlette(routes=[Route("/bare", bare, methods=["POST"])])
    uvicorn.run(
        app, port=port, http="httptools", loop="asyncio", log_config=None, access_log=False, lifespan="off"
    )


async def post(port: int, count: int, in_flight: int, size: int) -> None:
    """Post `count` bodies of `size` bytes, `in_flight` at once, and print the rate."""
    import aiohttp

    body = b'{"type":"transcript.completed","data":{"x":"' + b"a" * size + b'"}}'
    headers = {"content-type": "application/json", "webhook-id": "evt_1", "webhook-timestamp": "1"}
    left = iter(range(count))
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session:

        async def some() -> None:
            for _ in left:
                async with session.post(f"http://127.0.0.1:{port}/", data=body, headers=headers) as answer:
                    await answer.read()

        began = time.perf_counter()
        await asyncio.gather(*(some() for _ in range(in_flight)))
        took = time.perf_counter() - began
    print(json.dumps({"count": count, "seconds": took, "rate": count / took}))


if __name__ == "__main__":
    if sys.argv[1] == "serve":
        serve(int(sys.argv[2]))
    else:
        asyncio.run(post(*(int(value) for value in sys.argv[2:6])))
