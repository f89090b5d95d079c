"""Logged-in clients: a viewer, and an operator of all models."""

from __future__ import annotations

import pytest
from django.contrib.auth.models import User
from django.test import Client

from apps.models.models import ModelRole, Role


@pytest.fixture
def viewer(client: Client) -> Client:
    client.force_login(User.objects.create_user("vera"))
    return client


@pytest.fixture
def operator(client: Client) -> Client:
    user = User.objects.create_user("otto")
    ModelRole.objects.create(user=user, role=Role.OPERATOR)
    client.force_login(user)
    return client
