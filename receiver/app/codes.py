"""The codes of `receiver check`: what each stands for, and what to do about it.

They are stable: scripts and docs/configuration.md may name them. `E…` stops `serve` and `work`, `W…` does not.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache

from receiver.core.findings import Code, Finding
from receiver.outbound.destinations import Destination, kinds
from receiver.providers import Adapter, adapters

_GENERAL = {
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
    "E011": Code("What a setting needs is not installed", "install receiver with its extra"),
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
    "E023": Code("A source cannot be submitted to", ""),
    "E024": Code(
        "A submit token names a source that may not be submitted to",
        "set submit = true there, or leave it out",
    ),
    "W001": Code(
        "public_url is not set",
        'write public_url = "https://…"; until then callback-url refuses, and audio links point to this machine',
    ),
    "W002": Code("No destination is configured", "add a [destinations.NAME] section with url and secrets"),
    "W006": Code("The settings file can be read by other users", "chmod 600 the file"),
    "W007": Code("Callbacks come without TLS", "put TLS in front, and write https:// in public_url"),
    "W008": Code("public_url is an address that providers cannot reach", "write the name they can reach"),
    "W009": Code("No source is configured", "add a [sources.NAME] section"),
    "W010": Code(
        "A destination asks for what no event has", "compare it with the sources and docs/events.md"
    ),
    "W011": Code("A token of the API is very short", "use 32 random letters and digits"),
    "W012": Code("A source asks a private address that is not in allow", "add its network to allow"),
    "W013": Code("The clocks differ", "set this machine's clock, or the database server's (NTP)"),
    "W014": Code("The database server does not sync its disk", "set fsync = on in its postgresql.conf"),
    "W015": Code("Machines share a store and no blobs", 'write url = "s3://…" in [blobs]'),
    "W016": Code("Audio travels to S3 in clear", "write https:// in blobs.endpoint_url"),
    "W017": Code("The bucket does not answer", "start the store, or correct blobs.endpoint_url"),
    "W018": Code("The bucket works, and not as it should", ""),
    "W019": Code("Events are kept longer than retention.events says", "write the age of audio"),
    "W023": Code("A disk is nearly full", "make room, or shorten what [retention] keeps"),
    "W024": Code(
        "Submissions are taken where providers call back",
        'write listen = "127.0.0.1:8090" in [submit], or let the ingress refuse /submit',
    ),
    "W021": Code("A value of env: or file: is in quotes", "write it without them"),
    "W022": Code(
        "Several secrets sign callback URLs or did",
        "take the old ones out once receiver_token_secret_callbacks_total counts nothing by them",
    ),
    "W025": Code("A destination would take no events", "correct the setting, or what the destination allows"),
    "W026": Code("No destination takes a source's events", "name the source in a destination's sources"),
    "W020": Code("The tables are newer than this program, and fit it", "install the receiver that made them"),
}


@cache
def all_codes() -> Mapping[str, Code]:
    """Return every code there is. The first digit tells whose: 0 all, 1 Deepgram's, 2 deAPI's, 3 Deepdub's, 4 PlayHT's, 5 SNS's, 6 Pub/Sub's.

    Loads every provider and kind of destination: only those in use are loaded else.
    """
    parts: tuple[type[Destination | Adapter], ...] = (*kinds().values(), *adapters().values())
    return _GENERAL | {code: meaning for part in parts for code, meaning in part.codes.items()}


def finding(code: str, where: str, message: str, fix: str | None = None) -> Finding:
    """Return a finding with the code's own advice, or a closer one; `message` may begin with the setting, as those of errors do."""
    return Finding(code, where, message.removeprefix(f"{where}: "), fix or _GENERAL[code].fix)
