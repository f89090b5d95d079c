"""Helpers of all pages: page or fragment, 204 when nothing changed, errors as pages.

A live page polls its fragment and sends the stamp of the fragment that it shows. The stamp is a
digest of the fragment's data, so an unchanged fragment costs one small query and no rendering.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator
from functools import wraps
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Concatenate, ParamSpec

from django.contrib import messages
from django.contrib.staticfiles.finders import BaseFinder
from django.core.files.storage import FileSystemStorage, Storage
from django.http import HttpRequest, HttpResponse
from django.shortcuts import redirect, render
from django.urls import reverse
from django.utils.http import url_has_allowed_host_and_scheme
from django_htmx.http import HttpResponseClientRedirect
from django_htmx.middleware import HtmxDetails

from apps.lib.errors import InterlockError

P = ParamSpec("P")


class PageRequest(HttpRequest):
    """A request after the middleware: it has `htmx`."""

    htmx: HtmxDetails


View = Callable[Concatenate[PageRequest, P], HttpResponse]


def page(view: View[P]) -> Callable[Concatenate[HttpRequest, P], HttpResponse]:
    """Render an InterlockError of the view as a page with its status and message."""

    @wraps(view)
    def wrapped(request: HttpRequest, *args: P.args, **kwargs: P.kwargs) -> HttpResponse:
        try:
            return view(request, *args, **kwargs)  # type: ignore[arg-type]
        except InterlockError as error:
            template = f"{error.status}.html" if error.status in {403, 404} else "error.html"
            context = {"reason": error.message, "status": error.status}
            return render(request, template, context, status=error.status)

    return wrapped  # type: ignore[return-value]


def stamp_of(*parts: object) -> str:
    """Return a short digest of the data that a fragment shows."""
    text = "\x1f".join(str(part) for part in parts)
    return hashlib.blake2s(text.encode(), digest_size=8).hexdigest()


def render_live(
    request: PageRequest,
    *,
    template: str,
    fragment: str,
    stamp: str,
    context: Callable[[], dict[str, Any]],
) -> HttpResponse:
    """Render the page, or the fragment for HTMX; 204 when the browser already shows `stamp`.

    `context` is called only when something is rendered.
    """
    if request.htmx and request.GET.get("stamp") == stamp:
        return HttpResponse(status=204)
    chosen = fragment if request.htmx else template
    return render(request, chosen, {**context(), "stamp": stamp})


def go_to(request: PageRequest, name: str, *args: object, **kwargs: object) -> HttpResponse:
    """Redirect to a named page: a redirect of HTMX for an HTMX request, else of HTTP."""
    url = reverse(name, args=args, kwargs=kwargs)
    return HttpResponseClientRedirect(url) if request.htmx else redirect(url)


def came_from(request: PageRequest, fallback: str) -> str:
    """Return the URL of the page of this site that sent the request, else of `fallback`."""
    referer = request.headers.get("referer", "")
    ours = url_has_allowed_host_and_scheme(referer, {request.get_host()}, request.is_secure())
    return referer if ours else reverse(fallback)


def go_back(request: PageRequest, fallback: str) -> HttpResponse:
    """Redirect to the page of this site that sent the request, else to `fallback`."""
    return redirect(came_from(request, fallback))


def attempt(request: PageRequest, action: Callable[[], str]) -> InterlockError | None:
    """Run `action` and show what it returns as a message, or the error, which is also returned."""
    try:
        messages.success(request, action())
    except InterlockError as error:
        messages.error(request, error.message)
        return error
    return None


class PlotlyFinder(BaseFinder):
    """Serves plotly.min.js out of the plotly wheel, as `plotly/plotly.min.js`.

    Only this file: the package holds 10 MB more that no page uses. Importing plotly would take
    half a second in every process, so its folder is located without an import.
    """

    prefix = "plotly"
    file_name = "plotly.min.js"

    def __init__(self, app_names: Any = None, *args: Any, **kwargs: Any) -> None:
        spec = find_spec("plotly")
        if spec is None or spec.origin is None:
            raise ModuleNotFoundError("plotly is not installed: charts have no code to draw them")
        self.folder = Path(spec.origin).parent / "package_data"
        super().__init__(*args, **kwargs)

    def check(self, **kwargs: Any) -> list[Any]:
        return []

    def find(self, path: str, find_all: bool = False, **kwargs: Any) -> Any:
        """Return the file's path, or a list of it, as Django's finders do; [] for other files."""
        matches = [str(self.folder / self.file_name)]
        if path != f"{self.prefix}/{self.file_name}":
            matches = []
        if find_all or kwargs.get("all"):
            return matches
        return matches[0] if matches else []

    def list(self, ignore_patterns: Iterable[str] | None) -> Iterator[tuple[str, Storage]]:
        storage = FileSystemStorage(location=self.folder)
        # collectstatic puts a storage with a prefix below it.
        storage.prefix = self.prefix  # type: ignore[attr-defined]
        yield self.file_name, storage
