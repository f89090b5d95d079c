"""The form of the tokens page."""

from __future__ import annotations

from django import forms


class TokenForm(forms.Form):
    name = forms.CharField(
        max_length=100, help_text="The token's use. A token with the same name is replaced."
    )
