"""Static files: hashed names, long cache times, and gzip for clients that accept it."""

from __future__ import annotations

import gzip
import re
from pathlib import Path
from typing import Any

import pytest
from django.templatetags.static import static
from django.test import Client

SOURCE = Path("templates/static/interlock/app.js")
GZIP = {"Accept-Encoding": "br, gzip"}
FOR_EVER = "max-age=315360000"


def body_of(response: Any) -> bytes:
    body = b"".join(response)
    response.close()
    return body


def test_a_page_names_a_file_by_the_hash_of_its_content() -> None:
    assert re.fullmatch(r"/static/interlock/app\.[0-9a-f]{12}\.js", static("interlock/app.js"))
    assert re.fullmatch(
        r"/static/plotly/plotly\.min\.[0-9a-f]{12}\.js", static("plotly/plotly.min.js")
    )
    assert static("nothing/like.this") == "/static/nothing/like.this"


def test_a_hashed_name_is_cached_for_ever_and_compressed(client: Client) -> None:
    response = client.get(static("interlock/app.js"), headers=GZIP)
    assert FOR_EVER in response["cache-control"]
    assert "immutable" in response["cache-control"]
    assert (response["content-encoding"], response["vary"]) == ("gzip", "Accept-Encoding")
    assert gzip.decompress(body_of(response)) == SOURCE.read_bytes()


@pytest.mark.parametrize("accepted", ["", "br", "gzip;q=0", "identity"])
def test_without_gzip_the_file_is_sent_uncompressed(client: Client, accepted: str) -> None:
    response = client.get(static("interlock/app.js"), headers={"Accept-Encoding": accepted})
    assert "content-encoding" not in response
    assert body_of(response) == SOURCE.read_bytes()


@pytest.mark.parametrize("name", ["app.js", "app.0123456789ab.js"])
def test_another_name_gets_the_current_file_with_a_short_cache_time(
    client: Client, name: str
) -> None:
    response = client.get(f"/static/interlock/{name}")
    assert body_of(response) == SOURCE.read_bytes()
    assert FOR_EVER not in response["cache-control"]


def test_a_cached_file_is_not_sent_again(client: Client) -> None:
    url = static("interlock/app.js")
    tag = client.head(url)["etag"]
    assert client.get(url, headers={"If-None-Match": tag} | GZIP).status_code == 304
    head = client.head(url, headers=GZIP)
    assert (head.status_code, body_of(head)) == (200, b"")
    assert int(head["content-length"]) < SOURCE.stat().st_size


@pytest.mark.parametrize(
    "path", ["nothing.js", "interlock/", "../interlock/app.js", "%2e%2e/settings.py"]
)
def test_nothing_else_is_served(client: Client, path: str) -> None:
    assert client.get(f"/static/{path}").status_code in {302, 400, 404}
