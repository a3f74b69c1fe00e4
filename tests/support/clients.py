"""HTTP clients for servers on this machine."""

from __future__ import annotations

import ssl
from typing import Any

import httpx2

NO_AUTHORITIES = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
"""Trusts nobody, and is made once: a client that reads the usual authorities costs more than most tests."""


def local_client(**more: Any) -> httpx2.AsyncClient:
    """Return a client that speaks to this machine without TLS and asks no proxy."""
    return httpx2.AsyncClient(verify=NO_AUTHORITIES, trust_env=False, **more)
