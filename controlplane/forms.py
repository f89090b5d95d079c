"""What people send to the tokens page."""

from __future__ import annotations

from django import forms


class TokenForm(forms.Form):
    name = forms.CharField(
        max_length=100, help_text="Where it will be used: a token of the same name is replaced."
    )
