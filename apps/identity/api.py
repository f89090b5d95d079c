"""REST API of data-plane instances' tokens."""

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

TOKEN_ID = OpenApiParameter("id", int, OpenApiParameter.PATH, description="The token's id")


class InstanceTokenSerializer(serializers.ModelSerializer[InstanceToken]):
    """A token without the token: `hint` has its last characters."""

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
    """The one answer that has the token itself."""

    token = serializers.CharField(read_only=True)

    class Meta(InstanceTokenSerializer.Meta):
        fields = [*InstanceTokenSerializer.Meta.fields, "token"]


class RotationSerializer(serializers.Serializer[Any]):
    """`overlap_s`: for so many seconds the instance's other tokens are good beside the new one."""

    instance = serializers.CharField(max_length=100)
    overlap_s = serializers.IntegerField(
        min_value=0,
        max_value=int(tokens.OVERLAP_MAX.total_seconds()),
        default=int(tokens.OVERLAP.total_seconds()),
    )


class InstanceTokenViewSet(
    mixins.ListModelMixin, mixins.RetrieveModelMixin, GenericViewSet[InstanceToken]
):
    """What each data-plane instance shows, and seals its messages with."""

    queryset = InstanceToken.objects.order_by("instance", "-id")
    serializer_class = InstanceTokenSerializer
    lookup_value_regex = r"\d+"

    @extend_schema(request=InstanceTokenSerializer, responses={201: NewInstanceTokenSerializer})
    def create(self, request: Request) -> Response:
        """Issue an instance's first token. It stands in this answer only, and is kept nowhere."""
        require_role(request.user, None, Role.ADMIN)
        given = InstanceTokenSerializer(data=request.data)
        given.is_valid(raise_exception=True)
        made = tokens.issue_token(
            instance=given.validated_data["instance"],
            actor=actor_of(request),
            now=database_now(),
        )
        return _shown_once(*made)

    @extend_schema(request=RotationSerializer, responses={201: NewInstanceTokenSerializer})
    @action(detail=False, methods=["post"])
    def rotate(self, request: Request) -> Response:
        """Issue a new token of an instance; its others are good for the overlap more."""
        require_role(request.user, None, Role.ADMIN)
        given = RotationSerializer(data=request.data)
        given.is_valid(raise_exception=True)
        made = tokens.rotate_token(
            instance=given.validated_data["instance"],
            overlap=timedelta(seconds=given.validated_data["overlap_s"]),
            actor=actor_of(request),
            now=database_now(),
        )
        return _shown_once(*made)

    @extend_schema(parameters=[TOKEN_ID], request=None, responses=InstanceTokenSerializer)
    @action(detail=True, methods=["post"])
    def revoke(self, request: Request, pk: str) -> Response:
        """Make a token open nothing any more; what is sealed with it is refused within seconds."""
        token = self.get_object()
        require_role(request.user, None, Role.ADMIN)
        row = tokens.revoke_token(token=token, actor=actor_of(request), now=database_now())
        return Response(InstanceTokenSerializer(row).data)


def _shown_once(token: InstanceToken, secret: str) -> Response:
    body = {**InstanceTokenSerializer(token).data, "token": secret}
    headers = {"Cache-Control": "no-store"}
    return Response(body, status=status.HTTP_201_CREATED, headers=headers)


def register(router: BaseRouter) -> None:
    """Add these endpoints to the API's router."""
    router.register("instance-tokens", InstanceTokenViewSet, basename="instance-token")
