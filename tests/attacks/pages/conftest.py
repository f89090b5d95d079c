"""The control plane as people use it: its real server and a real browser."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import suppress

import pytest
from django.conf import settings
from django.contrib.auth.models import User
from django.db import connections
from django.test import Client
from playwright.sync_api import Browser, BrowserContext, Page, expect, sync_playwright

from apps.models.models import ModelRole, Role

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-dev-shm-usage",
]
STARTED_WITHIN_S = 120.0
IDLE_WITHIN_S = 30.0
# The timeout for pages, on a machine that may be busy.
SHOWN_WITHIN_MS = 30_000

Visit = Callable[..., Page]


def _url_of_test_database() -> str:
    known = connections["default"].settings_dict
    secret = f":{known['PASSWORD']}" if known["PASSWORD"] else ""
    return f"postgresql://{known['USER']}{secret}@{known['HOST']}:{known['PORT']}/{known['NAME']}"


@pytest.fixture(scope="session")
def web(django_db_setup: None) -> Iterator[str]:
    """Start the web server on the tests' database, as `./run up` starts it; return its address."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    env = {
        **os.environ,
        "DATABASE_URL": _url_of_test_database(),
        "REDIS_URL": settings.REDIS_URL,
        "DJANGO_SETTINGS_MODULE": "controlplane.settings",
    }
    command = [
        sys.executable, "-m", "granian", "--interface", "wsgi", "--host", "127.0.0.1",
        "--port", str(port), "--workers", "1", "--blocking-threads", "4",
        "controlplane.wsgi:application",
    ]  # fmt: skip
    server = subprocess.Popen(command, env=env, stdout=subprocess.DEVNULL)
    try:
        address = f"http://127.0.0.1:{port}"
        _wait_for(f"{address}/healthz/live", server)
        yield address
    finally:
        server.terminate()
        server.wait(30)


def _wait_for(url: str, server: subprocess.Popen[bytes]) -> None:
    until = time.monotonic() + STARTED_WITHIN_S
    while time.monotonic() < until:
        assert server.poll() is None, "the web server has ended"
        with suppress(OSError), urllib.request.urlopen(url, timeout=2):
            return
        time.sleep(0.1)
    raise AssertionError(f"{url} does not answer within {STARTED_WITHIN_S:g} s")


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if CHROMIUM is None:
        terminalreporter.section("not shown on this machine")
        terminalreporter.line(
            "Chromium is not here: pages were not pressed in a browser. "
            "`apt-get install --no-install-recommends chromium` brings it."
        )


# Its loop runs in the thread of the tests: not beyond the tests of a file, because tests with loops
# of their own could not start them.
@pytest.fixture(scope="module")
def chromium() -> Iterator[Browser]:
    if CHROMIUM is None:
        pytest.skip("Chromium is not here")
    with pytest.MonkeyPatch.context() as patch, sync_playwright() as playwright:
        # Playwright keeps a loop running in this thread, which Django would refuse.
        patch.setenv("DJANGO_ALLOW_ASYNC_UNSAFE", "1")
        expect.set_options(timeout=SHOWN_WITHIN_MS)
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield browser
        browser.close()


@pytest.fixture
def visit(web: str, chromium: Browser, transactional_db: None) -> Iterator[Visit]:
    """Return a function that logs a person in and opens a browser window."""
    contexts: list[BrowserContext] = []

    def open_window(name: str = "olga", role: Role = Role.OPERATOR, **options: object) -> Page:
        user, _ = User.objects.get_or_create(username=name)
        ModelRole.objects.get_or_create(user=user, role=role, model=None)
        client = Client()
        client.force_login(user)
        context = chromium.new_context(base_url=web, **options)  # type: ignore[arg-type]
        context.set_default_timeout(SHOWN_WITHIN_MS)
        session = client.cookies[settings.SESSION_COOKIE_NAME].value
        context.add_cookies([{"name": "sessionid", "value": session, "url": web}])
        contexts.append(context)
        return context.new_page()

    yield open_window
    for context in contexts:
        context.close()
    _wait_until_idle()


def _wait_until_idle() -> None:
    """Wait for the last requests: they would block emptying the tables."""
    others = (
        "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() "
        "AND pid <> pg_backend_pid() AND state <> 'idle'"
    )
    until = time.monotonic() + IDLE_WITHIN_S
    while time.monotonic() < until:
        with connections["default"].cursor() as cursor:
            cursor.execute(others)
            if cursor.fetchone() == (0,):
                return
        time.sleep(0.05)
    raise AssertionError(f"the server still works {IDLE_WITHIN_S:g} s after its windows closed")
