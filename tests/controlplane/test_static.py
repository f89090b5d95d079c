"""Static files: hashed names that are kept for ever, compressed for whoever takes it."""

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


def body_of(answer: Any) -> bytes:
    body = b"".join(answer)
    answer.close()
    return body


def test_a_page_names_a_file_by_the_hash_of_its_content() -> None:
    assert re.fullmatch(r"/static/interlock/app\.[0-9a-f]{12}\.js", static("interlock/app.js"))
    assert re.fullmatch(
        r"/static/plotly/plotly\.min\.[0-9a-f]{12}\.js", static("plotly/plotly.min.js")
    )
    assert static("nothing/like.this") == "/static/nothing/like.this"


def test_by_its_hash_it_is_kept_for_ever_and_compressed(client: Client) -> None:
    answer = client.get(static("interlock/app.js"), headers=GZIP)
    assert FOR_EVER in answer["cache-control"]
    assert "immutable" in answer["cache-control"]
    assert (answer["content-encoding"], answer["vary"]) == ("gzip", "Accept-Encoding")
    assert gzip.decompress(body_of(answer)) == SOURCE.read_bytes()


@pytest.mark.parametrize("accepted", ["", "br", "gzip;q=0", "identity"])
def test_who_takes_nothing_compressed_gets_it_as_it_is(client: Client, accepted: str) -> None:
    answer = client.get(static("interlock/app.js"), headers={"Accept-Encoding": accepted})
    assert "content-encoding" not in answer
    assert body_of(answer) == SOURCE.read_bytes()


@pytest.mark.parametrize("name", ["app.js", "app.0123456789ab.js"])
def test_by_another_name_it_is_the_present_one_and_not_kept_long(client: Client, name: str) -> None:
    answer = client.get(f"/static/interlock/{name}")
    assert body_of(answer) == SOURCE.read_bytes()
    assert FOR_EVER not in answer["cache-control"]


def test_what_the_browser_has_is_not_sent_again(client: Client) -> None:
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
