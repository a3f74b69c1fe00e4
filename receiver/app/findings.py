"""The numbered findings of `receiver check`: what each code stands for, and what to do about it.

The codes are stable: scripts and docs/configuration.md may name them. `E…` stops `serve` and `work`, `W…` does not.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from receiver.settings.model import Finding


@dataclass(frozen=True, slots=True)
class Code:
    """What one code stands for."""

    title: str
    fix: str
    """What to do about it, in general; a finding may say it more closely. Empty where only its message can."""


CODES: Mapping[str, Code] = {
    "E001": Code("The settings cannot be read", ""),
    "E002": Code("A source names an unknown provider", "write the name of a provider that receiver knows"),
    "E003": Code("public_url is not a usable URL", 'write it as "https://hooks.example.com"'),
    "E004": Code("public_url has a port that Deepgram does not call", "use port 80, 443, 8080 or 8443"),
    "E005": Code("public_url holds an underscore", "choose a host and path without one"),
    "E006": Code("deAPI cannot call a public_url without TLS", "put TLS in front, and write https://"),
    "E007": Code(
        "A folder cannot be written", "give the user that runs receiver the folder, or name another"
    ),
    "E008": Code(
        "store.url or blobs.url cannot be used",
        "write postgresql://… or sqlite:///… for the store, s3://… or file:///… for the blobs",
    ),
    "E009": Code("A destination cannot be used", ""),
    "E010": Code("A source's ca_file cannot be used", "name a file with certificates in PEM form"),
    "E011": Code("What store.url or blobs.url needs is not installed", "install receiver with its extra"),
    "E012": Code("PostgreSQL cannot be reached", "start the server, or correct host and port in store.url"),
    "E013": Code("PostgreSQL refuses the user", "correct user and password in store.url"),
    "E014": Code("There is no such database", "create it, or correct its name in store.url"),
    "E015": Code("The tables are not there, or older than this program", "run `receiver migrate`"),
    "E016": Code(
        "The tables are newer than this program", "install the receiver that made them, or a later one"
    ),
    "E017": Code(
        "The clocks are ten minutes apart", "set this machine's clock, or the database server's (NTP)"
    ),
    "E018": Code("The database cannot be used", ""),
    "E019": Code(
        "Machines share a store and no token secret", 'add secrets = ["env:TOKEN_SECRET"] to [tokens]'
    ),
    "E020": Code("The bucket cannot be used", ""),
    "E021": Code("A setting of S3 is wrong", ""),
    "E022": Code("blobs.key makes no keys", "end it with {name}"),
    "E101": Code("A Deepgram source has no proof", 'add basic = ["user:env:DEEPGRAM_CALLBACK_PASSWORD"]'),
    "E102": Code("require_dg_token without dg_token", "add dg_token"),
    "E103": Code("require_callback_secret without callback_secrets", "add callback_secrets"),
    "E104": Code("A Deepgram source's setting is wrong", ""),
    "E201": Code("A deAPI source has no proof", 'add secrets = ["env:DEAPI_WEBHOOK_SECRET"]'),
    "E204": Code("A deAPI source's setting is wrong", ""),
    "E301": Code("A Deepdub source has no key", 'add api_key = "env:DEEPDUB_API_KEY"'),
    "E304": Code("A Deepdub source's setting is wrong", ""),
    "E401": Code("A PlayHT source has no proof", 'add api_key = "env:PLAYHT_API_KEY"'),
    "E404": Code("A PlayHT source's setting is wrong", ""),
    "W001": Code(
        "public_url is not set",
        'write public_url = "https://…"; until then callback-url refuses, and audio links point to this machine',
    ),
    "W002": Code("No destination is configured", "add a [destinations.NAME] section with url and secrets"),
    "W003": Code("A destination has no secret", 'add secrets = ["env:APP_WEBHOOK_SECRET"]'),
    "W004": Code("A destination is called without TLS", "use an https:// URL"),
    "W005": Code("A destination's address is private and not in allow", "add its network to allow"),
    "W006": Code("The settings file can be read by other users", "chmod 600 the file"),
    "W007": Code("Callbacks come without TLS", "put TLS in front, and write https:// in public_url"),
    "W008": Code("public_url is an address that providers cannot reach", "write the name they can reach"),
    "W009": Code("No source is configured", "add a [sources.NAME] section"),
    "W010": Code("A destination's filter matches nothing", "compare it with the sources and the event types"),
    "W011": Code("An admin token is very short", "use 32 random letters and digits"),
    "W012": Code("A source asks a private address that is not in allow", "add its network to allow"),
    "W013": Code("The clocks differ", "set this machine's clock, or the database server's (NTP)"),
    "W014": Code("The database server does not sync its disk", "set fsync = on in its postgresql.conf"),
    "W015": Code("Machines share a store and no blobs", 'write url = "s3://…" in [blobs]'),
    "W016": Code("Audio travels to S3 in clear", "write https:// in blobs.endpoint_url"),
    "W017": Code("The bucket does not answer", "start the store, or correct blobs.endpoint_url"),
    "W018": Code("The bucket works, and not as it should", ""),
    "W019": Code("Events are kept longer than retention.events says", "write the age of audio"),
    "W020": Code("The tables are newer than this program, and fit it", "install the receiver that made them"),
    "W101": Code("dg_token is the only proof", 'add basic = ["user:env:DEEPGRAM_CALLBACK_PASSWORD"]'),
    "W102": Code("Only transcripts can be proved", 'add basic = ["user:env:DEEPGRAM_CALLBACK_PASSWORD"]'),
    "W103": Code("A Deepgram pair holds an underscore", "use letters and digits"),
    "W201": Code("Only jobs with a secret of their own can be proved", "add secrets"),
    "W202": Code("A deAPI secret is very short", "copy the secret from deAPI's webhook settings again"),
    "W203": Code("A deAPI key travels in clear", "use an https:// URL"),
    "W301": Code("A Deepdub key travels in clear", "use an https:// URL"),
    "W401": Code("PlayHT cannot be asked", "set both api_key and user_id"),
    "W402": Code("A PlayHT key travels in clear", "use an https:// URL"),
    "W403": Code("PlayHT's callbacks may have anything downloaded", "name the hosts that hold results"),
}
"""Every code there is. The first digit tells whose: 0 all, 1 Deepgram's, 2 deAPI's, 3 Deepdub's, 4 PlayHT's."""


def finding(code: str, where: str, message: str, fix: str | None = None) -> Finding:
    """Return a finding with the code's own advice, or a closer one."""
    return Finding(code, where, message, fix or CODES[code].fix)
