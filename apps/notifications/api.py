"""REST API of notification targets and deliveries."""

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
from apps.notifications.selectors import list_deliveries
from apps.notifications.serializers import (
    ChangeTargetSerializer,
    DeliverySerializer,
    NewTargetSerializer,
    TargetSerializer,
    permission_context,
)

NO_STORE = {"Cache-Control": "no-store"}
FILTERS = [
    OpenApiParameter("target", str, description="Only deliveries to this target"),
    OpenApiParameter(
        "state", str, enum=list(OutboxMessage.State), description="Only deliveries in this state"
    ),
]


def register(router: BaseRouter) -> None:
    """Add these endpoints to the API's router."""
    router.register("notification-targets", TargetViewSet, basename="notification-target")
    router.register("notification-deliveries", DeliveryViewSet, basename="notification-delivery")


class TargetViewSet(
    mixins.ListModelMixin, mixins.RetrieveModelMixin, GenericViewSet[NotificationTarget]
):
    """Webhooks, Slack-compatible endpoints and e-mail addresses that receive events."""

    queryset = NotificationTarget.objects.select_related("model")
    serializer_class = TargetSerializer
    lookup_field = "name"
    lookup_value_regex = "[^/]+"

    def get_serializer_context(self) -> dict[str, Any]:
        return {**super().get_serializer_context(), **permission_context(self.request.user)}

    @extend_schema(request=TargetSerializer, responses={201: NewTargetSerializer})
    def create(self, request: Request) -> Response:
        """Create a target. Only this response contains the secret of a webhook."""
        serializer = TargetSerializer(data=request.data, context=self.get_serializer_context())
        serializer.is_valid(raise_exception=True)
        require_role(request.user, serializer.validated_data["model"], Role.ADMIN)
        target = services.create_target(
            **serializer.validated_data, actor=actor_of(request), now=database_now()
        )
        return self._with_secret(target, status.HTTP_201_CREATED)

    @extend_schema(request=ChangeTargetSerializer(partial=True), responses=TargetSerializer)
    def partial_update(self, request: Request, name: str) -> Response:
        """Change the address, the events or the model of a target."""
        target = self._editable_target()
        context = self.get_serializer_context()
        serializer = ChangeTargetSerializer(
            target, data=request.data, partial=True, context=context
        )
        serializer.is_valid(raise_exception=True)
        if "model" in serializer.validated_data:
            require_role(request.user, serializer.validated_data["model"], Role.ADMIN)
        row = services.change_target(
            target=target, **serializer.validated_data, actor=actor_of(request), now=database_now()
        )
        return Response(self.get_serializer(row).data)

    @extend_schema(request=None, responses=TargetSerializer)
    @action(detail=True, methods=["post"])
    def activate(self, request: Request, name: str) -> Response:
        """Activate a target: it receives events from now on."""
        row = services.activate_target(
            target=self._editable_target(), actor=actor_of(request), now=database_now()
        )
        return Response(self.get_serializer(row).data)

    @extend_schema(request=None, responses=TargetSerializer)
    @action(detail=True, methods=["post"])
    def deactivate(self, request: Request, name: str) -> Response:
        """Deactivate a target: nothing is sent to it, and its open deliveries are given up."""
        row = services.deactivate_target(
            target=self._editable_target(), actor=actor_of(request), now=database_now()
        )
        return Response(self.get_serializer(row).data)

    @extend_schema(request=None, responses=NewTargetSerializer)
    @action(detail=True, methods=["post"])
    def rotate(self, request: Request, name: str) -> Response:
        """Create a new secret, which only this response contains. The old one signs for 24 h."""
        row = services.rotate_secret(
            target=self._editable_target(), actor=actor_of(request), now=database_now()
        )
        return self._with_secret(row, status.HTTP_200_OK)

    @extend_schema(request=None, responses={202: DeliverySerializer})
    @action(detail=True, methods=["post"])
    def test(self, request: Request, name: str) -> Response:
        """Send a test message through the outbox. Its delivery shows the result."""
        message = services.send_test(
            target=self._editable_target(), actor=actor_of(request), now=database_now()
        )
        shown = DeliverySerializer(message, context=self.get_serializer_context()).data
        return Response(shown, status=status.HTTP_202_ACCEPTED)

    def _editable_target(self) -> NotificationTarget:
        target = self.get_object()
        require_role(self.request.user, target.model, Role.ADMIN)
        return target

    def _with_secret(self, target: NotificationTarget, code: int) -> Response:
        shown = NewTargetSerializer(target, context=self.get_serializer_context()).data
        return Response(shown, status=code, headers=NO_STORE)


class DeliveryViewSet(
    mixins.ListModelMixin, mixins.RetrieveModelMixin, GenericViewSet[OutboxMessage]
):
    """Deliveries of events to targets, open and settled. Kept for 30 days."""

    queryset = OutboxMessage.objects.select_related("target__model")
    serializer_class = DeliverySerializer
    lookup_value_regex = "[0-9a-f-]{36}"

    def get_serializer_context(self) -> dict[str, Any]:
        return {**super().get_serializer_context(), **permission_context(self.request.user)}

    def get_queryset(self) -> QuerySet[OutboxMessage]:
        if self.action != "list":
            return super().get_queryset()
        query = self.request.query_params
        return list_deliveries(query.get("target", ""), query.get("state", ""))

    @extend_schema(parameters=FILTERS)
    def list(self, request: Request, *args: Any, **kwargs: Any) -> Response:
        """List deliveries, newest first."""
        return super().list(request, *args, **kwargs)

    @extend_schema(request=None, responses=DeliverySerializer)
    @action(detail=True, methods=["post"])
    def retry(self, request: Request, pk: str) -> Response:
        """Retry a delivery at once that was given up or waits for its next attempt."""
        message = self.get_object()
        require_role(request.user, message.target.model, Role.ADMIN)
        row = services.retry_message(message=message, actor=actor_of(request), now=database_now())
        return Response(self.get_serializer(row).data)
