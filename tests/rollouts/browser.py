"""What a browser would send of a form, read from the page's HTML."""

from __future__ import annotations

from html.parser import HTMLParser


class FormReader(HTMLParser):
    """Collects the values of the fields of one form, the one that has a field named `having`."""

    def __init__(self, having: str) -> None:
        super().__init__()
        self.having = having
        self.fields: dict[str, list[str]] = {}
        self._form: dict[str, list[str]] = {}
        self._select = ""
        self._textarea: str | None = None
        self._is_template = False

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        attributes = dict(attrs)
        name, value = attributes.get("name") or "", attributes.get("value")
        self._is_template = self._is_template or tag == "template"
        if self._is_template:
            return
        if tag == "form":
            self._form = {}
        elif tag == "input" and name:
            is_box = attributes.get("type") in {"checkbox", "radio"}
            if not is_box or "checked" in attributes:
                self._add(name, "on" if is_box and value is None else value or "")
        elif tag == "select":
            self._select = name
        elif tag == "option" and "selected" in attributes:
            self._add(self._select, value or "")
        elif tag == "textarea":
            self._textarea = name
            self._add(name, "")

    def handle_data(self, data: str) -> None:
        if self._textarea is not None:
            self._form[self._textarea][-1] += data

    def handle_endtag(self, tag: str) -> None:
        if tag == "textarea" and self._textarea is not None:
            # A browser leaves out the line break that follows the tag.
            text = self._form[self._textarea][-1]
            self._form[self._textarea][-1] = text.removeprefix("\n").replace("\n", "\r\n")
            self._textarea = None
        elif tag == "template":
            self._is_template = False
        elif tag == "form" and self.having in self._form:
            self.fields = self._form

    def _add(self, name: str, value: str) -> None:
        self._form.setdefault(name, []).append(value)


def form_in(text: str, having: str) -> dict[str, list[str]]:
    """Return what would be sent, unchanged, of the form that has a field named `having`."""
    reader = FormReader(having)
    reader.feed(text)
    assert reader.fields, f"no form has a field {having}"
    return reader.fields
