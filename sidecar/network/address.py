"""Addresses of HTTP servers, as settings and options give them."""

from __future__ import annotations

import ipaddress
import re
from typing import NamedTuple
from urllib.parse import urlsplit

_LABEL = r"[A-Za-z0-9_-]{1,63}"
_ADDRESS = re.compile(rf"(?:\[(?P<ipv6>[0-9A-Fa-f:.]+)\]|(?P<name>{_LABEL}(?:\.{_LABEL})*|)):(?P<port>[0-9]{{1,5}})")


def parse_address(address: str) -> tuple[str, int]:
    """Host and port of "127.0.0.1:9091", "name:9091", "[::1]:9091", or ":9091", where the host is "": all interfaces.

    Port 0 stands for any that is free. Raises ValueError that names the address and what is allowed.
    """
    match = _ADDRESS.fullmatch(address)
    try:
        if match is None or int(match["port"]) > 65535:
            raise ValueError
        if match["ipv6"]:
            ipaddress.IPv6Address(match["ipv6"])
        elif re.fullmatch(r"[0-9.]+", match["name"]):
            ipaddress.IPv4Address(match["name"])
    except ValueError:
        allowed = "HOST:PORT, [IPv6]:PORT, or :PORT for all interfaces, with a port from 0 to 65535"
        raise ValueError(f"HTTP address {address!r}: expected {allowed}") from None
    return match["ipv6"] or match["name"], int(match["port"])


class Url(NamedTuple):
    """Where a server is. path: what a proxy has put before the server's own, without a slash at the end."""

    host: str
    port: int
    path: str
    tls: bool


def parse_url(url: str) -> Url:
    """Read `http://HOST:PORT` or `https://HOST`, with any path. Raises ValueError that names the URL and what is allowed."""
    parts = urlsplit(url)
    allowed = "expected http://HOST:PORT or https://HOST, without a user, a query and a fragment"
    try:
        port, host = parts.port, parts.hostname
    except ValueError as error:
        raise ValueError(f"{url}: {error}; {allowed}") from None
    if parts.scheme not in ("http", "https") or not host or parts.username is not None or parts.query or parts.fragment:
        raise ValueError(f"{url}: {allowed}")
    if not re.fullmatch(r"[!-~]*", parts.path):
        raise ValueError(f"{url}: {allowed}; a path has no spaces, and no letters but those of ASCII")
    tls = parts.scheme == "https"
    return Url(host, port or (443 if tls else 80), parts.path.rstrip("/"), tls)
