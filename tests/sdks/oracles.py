"""Providers' own packages judge our examples of their callbacks: the example is accepted, and one with a byte more is refused.

    python -m venv ~/oracles && ~/oracles/bin/pip install -e . -r tests/sdks/oracles.txt
    ~/oracles/bin/python -m tests.sdks.oracles

The examples are those of the golden cases and of tests/unit/custom/vectors.json, whose verdicts the suite holds receiver to.
Packages of other versions may have moved what is called here.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from datetime import timedelta
from importlib.metadata import version
from pathlib import Path
from typing import Any
from unittest import mock
from urllib.parse import parse_qsl

from tests.support.golden import PUBLIC_URL, cases


@dataclass(frozen=True)
class Example:
    """One request, with its secret and the time when it came."""

    recipe: str
    name: str
    url: str
    headers: dict[str, str]
    """Names in lower case."""
    body: str
    secret: str
    now: int
    """Seconds since 1970."""

    @property
    def form(self) -> dict[str, str]:
        """The fields of a form."""
        return dict(parse_qsl(self.body, keep_blank_values=True))


def elevenlabs(one: Example) -> object:
    from elevenlabs.webhooks_custom import WebhooksClient

    client = WebhooksClient.__new__(WebhooksClient)
    return client.construct_event(one.body, one.headers["elevenlabs-signature"], one.secret)


def openai(one: Example) -> object:
    from openai import OpenAI

    OpenAI(api_key="none").webhooks.verify_signature(one.body, one.headers, secret=one.secret)
    return True


def replicate(one: Example) -> object:
    from replicate.webhook import Webhooks, WebhookSigningSecret

    Webhooks.validate(headers=one.headers, body=one.body, secret=WebhookSigningSecret(key=one.secret))
    return True


def retell(one: Example) -> object:
    from retell.lib.webhook_auth import verify

    return verify(one.body, one.secret, one.headers["x-retell-signature"])


def telnyx(one: Example) -> object:
    from telnyx.lib.webhooks_ed25519 import verify_webhook_signature

    verify_webhook_signature(one.body, one.headers, one.secret)
    return True


def twilio(one: Example) -> object:
    from twilio.request_validator import RequestValidator

    return RequestValidator(one.secret).validate(one.url, one.form, one.headers["x-twilio-signature"])


def plivo(one: Example) -> object:
    from plivo.utils.signature_v3 import validate_v3_signature

    nonce, signature = one.headers["x-plivo-signature-v3-nonce"], one.headers["x-plivo-signature-v3"]
    return validate_v3_signature("POST", one.url, nonce, one.secret, signature, one.form)


def livekit(one: Example) -> object:
    from livekit.api import TokenVerifier, WebhookReceiver
    from livekit.api.access_token import jwt

    key = jwt.decode(one.headers["authorization"], options={"verify_signature": False}).get("iss")
    verifier = TokenVerifier(key or "none", one.secret, leeway=timedelta(days=36500))
    WebhookReceiver(verifier).receive(one.body, one.headers["authorization"])
    return True


def vonage(one: Example) -> object:
    from hashlib import sha256

    from jwt import decode
    from vonage_jwt import verify_signature

    token = one.headers["authorization"].removeprefix("Bearer ")
    claims = decode(token, options={"verify_signature": False})
    hashed = (
        claims["payload_hash"] == sha256(one.body.encode()).hexdigest()
    )  # the package leaves this to its user
    return hashed and verify_signature(token, one.secret)


ORACLES: dict[str, tuple[str, Callable[[Example], object]]] = {
    "elevenlabs": ("elevenlabs", elevenlabs),
    "openai": ("openai", openai),
    "replicate": ("replicate", replicate),
    "retell": ("retell-sdk", retell),
    "telnyx": ("telnyx", telnyx),
    "twilio": ("twilio", twilio),
    "plivo": ("plivo", plivo),
    "livekit": ("livekit-api", livekit),
    "vonage": ("vonage-jwt", vonage),
}
"""By recipe: the package and how it is asked."""


def examples() -> Iterator[Example]:
    """Yield the examples that receiver accepts, of the recipes that have an oracle."""
    for case in cases("custom"):
        recipe = case.settings["recipe"]
        if recipe in ORACLES and case.verdict == "accepted":
            headers = {name.lower(): value for name, value in case.request.headers}
            secret, body = case.settings["secrets"][-1], case.request.body.decode()
            url, now = PUBLIC_URL + case.request.target, case.received_at // 1000
            yield Example(recipe, f"golden {case.name}", url, headers, body, secret, now)
    path = Path(__file__).parent.parent / "unit" / "custom" / "vectors.json"
    for vector in json.loads(path.read_text("utf-8")):
        if vector["recipe"] in ORACLES and vector["expected"] == "accepted":
            headers = {name.lower(): value for name, value in vector["headers"].items()}
            url, body, secret = vector["url"], vector["body"], vector["secrets"][-1]
            yield Example(
                vector["recipe"], f"vector {vector['name']}", url, headers, body, secret, vector["now"]
            )


def judged(one: Example) -> str:
    """Return what a package says of an example: `accepted`, or the way in which it refuses."""
    try:
        with mock.patch("time.time", return_value=float(one.now)):
            found: Any = ORACLES[one.recipe][1](one)
    except ImportError:
        raise
    except Exception as error:
        return f"refused ({type(error).__name__})"
    return "accepted" if found else "refused"


def main() -> int:
    """Print each verdict; return how many are not as they have to be."""
    wrong = 0
    for one in examples():
        more = "&A=1" if one.recipe in ("twilio", "plivo") else " "
        said, changed = judged(one), judged(replace(one, body=one.body + more))
        wrong += said != "accepted" or not changed.startswith("refused")
        package = ORACLES[one.recipe][0]
        print(f"{package} {version(package)}: {one.name}: {said}; with more in its body: {changed}")
    return wrong


if __name__ == "__main__":
    sys.exit(main())
