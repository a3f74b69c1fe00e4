"""The settings file that `receiver init` writes."""

from __future__ import annotations

import json
import secrets
from dataclasses import dataclass

from receiver.core import callback_urls
from receiver.core.signing import new_webhook_secret

_ALPHABET = "abcdefghjkmnpqrstuvwxyzABCDEFGHJKMNPQRSTUVWXYZ23456789"
APP_URL = "http://127.0.0.1:3000/hooks"


@dataclass(frozen=True, slots=True)
class Fresh:
    """Secrets made for one file."""

    basic: str
    app_secret: str
    token_secret: str


def fresh() -> Fresh:
    """Return new secrets; the Deepgram pair holds letters and digits only, so it needs no encoding in a URL."""
    password = "".join(secrets.choice(_ALPHABET) for _ in range(32))
    return Fresh(f"deepgram:{password}", new_webhook_secret(), secrets.token_hex(32))


def settings_file(made: Fresh, *, public_url: str | None, app_url: str) -> str:
    """Return the commented text of a settings file."""
    public = (
        f"public_url = {_quoted(public_url)}" if public_url else '# public_url = "https://hooks.example.com"'
    )
    allow = (
        'allow = ["127.0.0.0/8", "::1/128", "10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16"]'
        "    # private addresses it may have"
        if callback_urls.is_private(app_url)
        else '# allow = ["10.0.0.0/8"]    # private addresses it may have; none unless written here'
    )
    return f"""\
# receiver's settings. `receiver check` tells what is wrong with them; docs/configuration.md lists them all.
# Any value may be "env:NAME" or "file:PATH" instead, and RECEIVER__SECTION__KEY in the environment overrides it.

# Where the providers reach this machine. The port is 80, 443, 8080 or 8443, and there is no underscore in it.
{public}

# Everything that is kept lies here, relative to the folder that receiver is started in.
data = "receiver-data"

[server]
host = "127.0.0.1"    # 0.0.0.0 behind a proxy on another machine
port = 8080
# admin_tokens = ["env:RECEIVER_ADMIN_TOKEN"]    # opens the admin API under /api/v1/; keep it from the public

# Signs callback tokens and audio links. To rotate: add a new one at the end, and remove the old one when
# no callback URL made with it is in use any more (audio links last a week at most).
[tokens]
secrets = [{_quoted(made.token_secret)}]

# Deepgram sends user:password from the callback URL as Basic credentials: the proof that it recommends.
# To rotate: add a new pair at the end; URLs are made with the last, and any is accepted.
[sources.deepgram]
provider = "deepgram"
basic = [{_quoted(made.basic)}]
# require_token = true    # take only URLs made by `receiver callback-url`

# deAPI signs its callbacks. Copy the secret from its webhook settings into DEAPI_WEBHOOK_SECRET, then uncomment.
# [sources.deapi]
# provider = "deapi"
# secrets = ["env:DEAPI_WEBHOOK_SECRET"]
# api_key = "env:DEAPI_API_KEY"    # asks for a fresh link when one has expired, and for jobs that were handed over

# Deepdub does not call back: hand over the URL that it answers with, by `receiver pickup deepdub URL`.
# [sources.deepdub]
# provider = "deepdub"
# api_key = "env:DEEPDUB_API_KEY"
# region = "us"    # or "eu": where the jobs are submitted

# PlayHT, or what serves its API: asked for jobs that were handed over, and called back by.
# [sources.playht]
# provider = "playht"
# api_key = "env:PLAYHT_API_KEY"
# user_id = "env:PLAYHT_USER_ID"

# Your application. It checks each event with this secret, by Standard Webhooks.
[destinations.app]
url = {_quoted(app_url)}
secrets = [{_quoted(made.app_secret)}]
sources = ["*"]
events = ["*"]
retry = "deepgram"    # 10 retries, 30 s apart; or "standard"; or {{schedule = [5, 300, 3600]}} in seconds
{allow}
"""


def _quoted(text: str) -> str:
    return json.dumps(text)
