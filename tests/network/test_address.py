"""Addresses of the HTTP server, as settings and options give them."""

from __future__ import annotations

import re

import pytest

from sidecar.monitoring.fetch import fetch_status, probe
from sidecar.network.address import parse_address, parse_url
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


@pytest.mark.parametrize(
    ("url", "read"),
    [
        ("http://pod-3:9091", ("pod-3", 9091, "", False)),
        ("http://pod-3/", ("pod-3", 80, "", False)),
        ("https://[::1]/sidecars/3/", ("::1", 443, "/sidecars/3", True)),
    ],
)
def test_urls(url, read):
    assert parse_url(url) == read


@pytest.mark.parametrize(
    "url", ["ftp://a", "http://", "http://a:b", "http://u@a", "http://a?x=1", "http://a/#x", "http://a/b c"]
)
def test_bad_urls_are_named_with_what_is_allowed(url):
    for function in (parse_url, fetch_status, probe):
        with pytest.raises(ValueError, match=f"^{re.escape(url)}: .*expected http://HOST:PORT or https://HOST"):
            function(url)


BAD_ADDRESSES = """
    9091 localhost localhost: :65536 :-1 :+1 :٣ :000001 /status:1 user@host:1 a..b:1 é:1 1.2.3:1
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
