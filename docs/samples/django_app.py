"""Takes receiver's events with Django, in one file.

pip install django standardwebhooks
APP_WEBHOOK_SECRET=whsec_… python django_app.py runserver 3000 --noreload
"""

import os
import sys

from django.conf import settings
from django.core.management import execute_from_command_line
from django.http import HttpRequest, HttpResponse
from django.urls import path
from django.views.decorators.csrf import csrf_exempt
from django.views.decorators.http import require_POST
from standardwebhooks import Webhook, WebhookVerificationError

settings.configure(ROOT_URLCONF=__name__, ALLOWED_HOSTS=["*"], SECRET_KEY=os.urandom(32).hex())
webhook = Webhook(os.environ["APP_WEBHOOK_SECRET"])
seen: set[str] = set()  # your database, in earnest


@csrf_exempt  # the signature is the proof
@require_POST
def take(request: HttpRequest) -> HttpResponse:
    """Take one event; the same one may come again."""
    headers = {name.lower(): value for name, value in request.headers.items()}
    try:
        event = webhook.verify(request.body, headers)
    except WebhookVerificationError:
        return HttpResponse(status=401)
    if headers["webhook-id"] not in seen:
        seen.add(headers["webhook-id"])
        print(event["type"], event["data"]["ref"], flush=True)
    return HttpResponse(status=204)


urlpatterns = [path("hooks", take)]

if __name__ == "__main__":
    execute_from_command_line(sys.argv)
