"""REST API of the tokens of data-plane instances."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from drf_spectacular.utils import OpenApiParameter, extend_schema
from rest_framework import mixins, serializers, status
from rest_framework.decorators import action
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.routers import BaseRouter
from rest_framework.viewsets import GenericViewSet

from apps.identity import tokens
from apps.identity.models import InstanceToken
from apps.lib.clock import database_now
from apps.models.access import actor_of, require_role
from apps.models.models import Role

TOKEN_ID = OpenApiParameter("id", int, OpenApiParameter.PATH, description="The id of the token")


class InstanceTokenSerializer(serializers.ModelSerializer[InstanceToken]):
    """A token without its secret: `hint` has the last characters of the secret."""

    state = serializers.SerializerMethodField(help_text="active, expiring, expired or revoked")

    class Meta:
        model = InstanceToken
        fields = [
            "id",
            "instance",
            "hint",
            "state",
            "created_at",
            "created_by",
            "last_used_at",
            "expires_at",
            "revoked_at",
        ]
        read_only_fields = [name for name in fields if name != "instance"]

    def get_state(self, token: InstanceToken) -> str:
        return token.state(database_now())


class NewInstanceTokenSerializer(InstanceTokenSerializer):
    """A new token with its secret, which only this response contains."""

    token = serializers.CharField(read_only=True)

    class Meta(InstanceTokenSerializer.Meta):
        fields = [*InstanceTokenSerializer.Meta.fields, "token"]


class RotationSerializer(serializers.Serializer[Any]):
    """A rotation: for `overlap_s` seconds the other tokens of the instance stay valid."""

    instance = serializers.CharField(max_length=100)
    overlap_s = serializers.IntegerField(
        min_value=0,
        max_value=int(tokens.OVERLAP_MAX.total_seconds()),
        default=int(tokens.OVERLAP.total_seconds()),
    )


class InstanceTokenViewSet(
    mixins.ListModelMixin, mixins.RetrieveModelMixin, GenericViewSet[InstanceToken]
):
    """Tokens that data-plane instances authenticate with and seal their messages with."""

    queryset = InstanceToken.objects.order_by("instance", "-id")
    serializer_class = InstanceTokenSerializer
    lookup_value_regex = r"\d+"

    @extend_schema(request=InstanceTokenSerializer, responses={201: NewInstanceTokenSerializer})
    def create(self, request: Request) -> Response:
        """Issue the first token of an instance. Only this response contains it."""
        require_role(request.user, None, Role.ADMIN)
        serializer = InstanceTokenSerializer(data=request.data)
        serializer.is_valid(raise_exception=True)
        token, secret = tokens.issue_token(
            instance=serializer.validated_data["instance"],
            actor=actor_of(request),
            now=database_now(),
        )
        return _new_token_response(token, secret)

    @extend_schema(request=RotationSerializer, responses={201: NewInstanceTokenSerializer})
    @action(detail=False, methods=["post"])
    def rotate(self, request: Request) -> Response:
        """Issue a new token for an instance; its other tokens expire after the overlap."""
        require_role(request.user, None, Role.ADMIN)
        serializer = RotationSerializer(data=request.data)
        serializer.is_valid(raise_exception=True)
        token, secret = tokens.rotate_token(
            instance=serializer.validated_data["instance"],
            overlap=timedelta(seconds=serializer.validated_data["overlap_s"]),
            actor=actor_of(request),
            now=database_now(),
        )
        return _new_token_response(token, secret)

    @extend_schema(parameters=[TOKEN_ID], request=None, responses=InstanceTokenSerializer)
    @action(detail=True, methods=["post"])
    def revoke(self, request: Request, pk: str) -> Response:
        """Revoke a token. Messages that are sealed with it are refused within seconds."""
        token = self.get_object()
        require_role(request.user, None, Role.ADMIN)
        row = tokens.revoke_token(token=token, actor=actor_of(request), now=database_now())
        return Response(InstanceTokenSerializer(row).data)


def _new_token_response(token: InstanceToken, secret: str) -> Response:
    body = {**InstanceTokenSerializer(token).data, "token": secret}
    headers = {"Cache-Control": "no-store"}
    return Response(body, status=status.HTTP_201_CREATED, headers=headers)


def register(router: BaseRouter) -> None:
    """Add these endpoints to the API's router."""
    router.register("instance-tokens", InstanceTokenViewSet, basename="instance-token")
