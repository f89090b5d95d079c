"""Forms and the errors of services."""

from __future__ import annotations

from django import forms

from apps.lib.errors import InterlockError


def add_service_error(form: forms.Form, error: InterlockError) -> None:
    """Add the error to its field, or to the form as a whole where the form has no such field."""
    if error.field in form.fields:
        form.add_error(error.field, error.sentence)
    else:
        form.add_error(None, f"{error.message[:1].upper()}{error.message[1:]}")
