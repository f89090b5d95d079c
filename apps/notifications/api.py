"""REST API of notifications: who is told of what, and what became of it."""

from __future__ import annotations

from typing import Any

from django.db.models import QuerySet
from drf_spectacular.utils import OpenApiParameter, extend_schema
from rest_framework import mixins, status
from rest_framework.decorators import action
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.routers import BaseRouter
from rest_framework.viewsets import GenericViewSet

from apps.lib.clock import database_now
from apps.models.access import actor_of, require_role
from apps.models.models import Role
from apps.notifications import services
from apps.notifications.models import NotificationTarget, OutboxMessage
from apps.notifications.selectors import deliveries
from apps.notifications.serializers import (
    ChangeTargetSerializer,
    DeliverySerializer,
    NewTargetSerializer,
    TargetSerializer,
    seen_by,
)

NO_STORE = {"Cache-Control": "no-store"}
FILTERS = [
    OpenApiParameter("target", str, description="Only those of this target"),
    OpenApiParameter(
        "state", str, enum=list(OutboxMessage.State), description="Only those in this state"
    ),
]


def register(router: BaseRouter) -> None:
    """Add these endpoints to the API's router."""
    router.register("notification-targets", TargetViewSet, basename="notification-target")
    router.register("notification-deliveries", DeliveryViewSet, basename="notification-delivery")


class TargetViewSet(
    mixins.ListModelMixin, mixins.RetrieveModelMixin, GenericViewSet[NotificationTarget]
):
    """Webhooks, Slack-compatible endpoints and e-mail addresses that are told of events."""

    queryset = NotificationTarget.objects.select_related("model")
    serializer_class = TargetSerializer
    lookup_field = "name"
    lookup_value_regex = "[^/]+"

    def get_serializer_context(self) -> dict[str, Any]:
        return {**super().get_serializer_context(), **seen_by(self.request.user)}

    @extend_schema(request=TargetSerializer, responses={201: NewTargetSerializer})
    def create(self, request: Request) -> Response:
        """Make a target. A webhook's secret stands in this answer only."""
        given = TargetSerializer(data=request.data, context=self.get_serializer_context())
        given.is_valid(raise_exception=True)
        require_role(request.user, given.validated_data["model"], Role.ADMIN)
        target = services.create_target(
            **given.validated_data, actor=actor_of(request), now=database_now()
        )
        return self._with_secret(target, status.HTTP_201_CREATED)

    @extend_schema(request=ChangeTargetSerializer(partial=True), responses=TargetSerializer)
    def partial_update(self, request: Request, name: str) -> Response:
        """Change the address, the events or the model."""
        target = self._mine()
        context = self.get_serializer_context()
        given = ChangeTargetSerializer(target, data=request.data, partial=True, context=context)
        given.is_valid(raise_exception=True)
        if "model" in given.validated_data:
            require_role(request.user, given.validated_data["model"], Role.ADMIN)
        row = services.change_target(
            target=target, **given.validated_data, actor=actor_of(request), now=database_now()
        )
        return Response(self.get_serializer(row).data)

    @extend_schema(request=None, responses=TargetSerializer)
    @action(detail=True, methods=["post"])
    def activate(self, request: Request, name: str) -> Response:
        """Tell the target of what happens from now on."""
        row = services.activate_target(
            target=self._mine(), actor=actor_of(request), now=database_now()
        )
        return Response(self.get_serializer(row).data)

    @extend_schema(request=None, responses=TargetSerializer)
    @action(detail=True, methods=["post"])
    def deactivate(self, request: Request, name: str) -> Response:
        """Send nothing more to the target; what is open for it is given up."""
        row = services.deactivate_target(
            target=self._mine(), actor=actor_of(request), now=database_now()
        )
        return Response(self.get_serializer(row).data)

    @extend_schema(request=None, responses=NewTargetSerializer)
    @action(detail=True, methods=["post"])
    def rotate(self, request: Request, name: str) -> Response:
        """Make a new secret, shown in this answer only; the old one signs for 24 hours more."""
        row = services.rotate_secret(
            target=self._mine(), actor=actor_of(request), now=database_now()
        )
        return self._with_secret(row, status.HTTP_200_OK)

    @extend_schema(request=None, responses={202: DeliverySerializer})
    @action(detail=True, methods=["post"])
    def test(self, request: Request, name: str) -> Response:
        """Send a test message on the way that all others take; its delivery tells what became."""
        message = services.send_test(
            target=self._mine(), actor=actor_of(request), now=database_now()
        )
        shown = DeliverySerializer(message, context=self.get_serializer_context()).data
        return Response(shown, status=status.HTTP_202_ACCEPTED)

    def _mine(self) -> NotificationTarget:
        target = self.get_object()
        require_role(self.request.user, target.model, Role.ADMIN)
        return target

    def _with_secret(self, target: NotificationTarget, code: int) -> Response:
        shown = NewTargetSerializer(target, context=self.get_serializer_context()).data
        return Response(shown, status=code, headers=NO_STORE)


class DeliveryViewSet(
    mixins.ListModelMixin, mixins.RetrieveModelMixin, GenericViewSet[OutboxMessage]
):
    """What was told to whom, and what is still to be told. Kept for 30 days."""

    queryset = OutboxMessage.objects.select_related("target__model")
    serializer_class = DeliverySerializer
    lookup_value_regex = "[0-9a-f-]{36}"

    def get_serializer_context(self) -> dict[str, Any]:
        return {**super().get_serializer_context(), **seen_by(self.request.user)}

    def get_queryset(self) -> QuerySet[OutboxMessage]:
        if self.action != "list":
            return super().get_queryset()
        asked = self.request.query_params
        return deliveries(asked.get("target", ""), asked.get("state", ""))

    @extend_schema(parameters=FILTERS)
    def list(self, request: Request, *args: Any, **kwargs: Any) -> Response:
        """Deliveries, the newest first."""
        return super().list(request, *args, **kwargs)

    @extend_schema(request=None, responses=DeliverySerializer)
    @action(detail=True, methods=["post"])
    def retry(self, request: Request, pk: str) -> Response:
        """Try again, now, what was given up or waits for its next attempt."""
        message = self.get_object()
        require_role(request.user, message.target.model, Role.ADMIN)
        row = services.retry_message(message=message, actor=actor_of(request), now=database_now())
        return Response(self.get_serializer(row).data)
