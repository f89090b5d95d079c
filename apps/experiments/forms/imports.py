"""Upload form of a file of outcomes."""

from __future__ import annotations

from django import forms


class ImportForm(forms.Form):
    file = forms.FileField(
        label="File",
        help_text="CSV (UTF-8, with a header) or Parquet with the columns event_id, unit_id, "
        "metric, value and occurred_at.",
        error_messages={"empty": "The file is empty.", "required": "Choose a file."},
    )
