"""Takes receiver's events with FastAPI.

pip install fastapi uvicorn standardwebhooks
APP_WEBHOOK_SECRET=whsec_… uvicorn fastapi_app:app --port 3000
"""

import os

from fastapi import FastAPI, Request, Response
from standardwebhooks import Webhook, WebhookVerificationError

app = FastAPI()
webhook = Webhook(os.environ["APP_WEBHOOK_SECRET"])
seen: set[str] = set()  # your database, in earnest


@app.post("/hooks")
async def take(request: Request) -> Response:
    """Take one event; the same one may come again."""
    try:
        event = webhook.verify(await request.body(), dict(request.headers))
    except WebhookVerificationError:
        return Response(status_code=401)
    if request.headers["webhook-id"] not in seen:
        seen.add(request.headers["webhook-id"])
        print(event["type"], event["data"]["ref"], flush=True)
    return Response(status_code=204)
