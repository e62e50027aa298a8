"""Addresses of the HTTP server, as settings and options give them."""

from __future__ import annotations

import re

import pytest

from sidecar.monitoring.fetch import fetch_status, probe
from sidecar.network.address import parse_address
from sidecar.network.http import Page
from sidecar.network.http_server import start_http


@pytest.mark.parametrize(
    ("address", "host", "port"),
    [
        ("127.0.0.1:9091", "127.0.0.1", 9091),
        ("0.0.0.0:1", "0.0.0.0", 1),
        (":9091", "", 9091),
        ("[::1]:9091", "::1", 9091),
        ("[::]:0", "::", 0),
        ("localhost:65535", "localhost", 65535),
        ("pod-3.vmafx_sidecar.svc:80", "pod-3.vmafx_sidecar.svc", 80),
    ],
)
def test_addresses(address, host, port):
    assert parse_address(address) == (host, port)


BAD_ADDRESSES = """
    9091 localhost localhost: :65536 :-1 :+1 :٣ :000001 http://localhost:9091 /status:1 user@host:1 a..b:1 é:1 1.2.3:1
    127.0.0.256:1 ::1:9091 [::1] []:1 [::g]:1 [:::]:1 [127.0.0.1]:1
"""


@pytest.mark.parametrize("address", [*BAD_ADDRESSES.split(), "", ": 1", ":1 ", "a b:1", "127.0.0.1:9091\n", "a" * 64 + ":1"])
def test_bad_addresses_are_named_with_what_is_allowed(address):
    for function in (
        parse_address,
        fetch_status,
        probe,
        lambda address: start_http(address, lambda target, headers: Page(b"")),
    ):
        with pytest.raises(ValueError, match=re.escape(f"{address!r}: expected HOST:PORT, [IPv6]:PORT, or :PORT")):
            function(address)
