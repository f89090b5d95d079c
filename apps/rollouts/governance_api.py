"""REST endpoints of rollout rules: freeze windows, the rollout limit, quarantine."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from django.db.models import Q, QuerySet
from drf_spectacular.utils import OpenApiParameter, extend_schema, extend_schema_view
from rest_framework import mixins, serializers, status
from rest_framework.decorators import action
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.routers import BaseRouter
from rest_framework.views import APIView
from rest_framework.viewsets import GenericViewSet

from apps.lib.clock import database_now
from apps.models.access import actor_of, require_role
from apps.models.api import find_model, find_version
from apps.models.models import ModelVersion, Role
from apps.rollouts.freeze_store import create_freeze, end_freeze, role_to_freeze
from apps.rollouts.freezes import open_until
from apps.rollouts.maintenance import concurrent_max, lift_quarantine, set_concurrent_max
from apps.rollouts.models import FreezeWindow, Quarantine
from apps.rollouts.serializers import ReasonSerializer, StrictSerializer
from apps.rollouts.timestamps import EXAMPLE, TimestampField

MODEL = OpenApiParameter("model", str, description="Return only entries that apply to this model")


def register(router: BaseRouter) -> None:
    """Add these endpoints to the API's router."""
    router.register("freezes", FreezeViewSet, basename="freeze")
    router.register("quarantine", QuarantineViewSet, basename="quarantine")


class FreezeSerializer(StrictSerializer):
    """`model` null: all models. Without `starts_at` the window starts now.

    A weekly window recurs at the local time of `time_zone`, an IANA name. `open_until` is null
    while the window is not open.
    """

    id = serializers.IntegerField(read_only=True)
    model = serializers.CharField(source="model.name", allow_null=True, default=None)
    reason = serializers.CharField(max_length=500)
    starts_at = TimestampField(required=False)
    ends_at = TimestampField()
    is_weekly = serializers.BooleanField(default=False)
    time_zone = serializers.CharField(max_length=64, default="UTC")
    open_until = serializers.SerializerMethodField()
    created_by = serializers.CharField(read_only=True)
    created_at = serializers.DateTimeField(read_only=True)

    def validate(self, attrs: dict[str, Any]) -> dict[str, Any]:
        """Refuse a weekly window with a UTC offset other than 0 and without a time zone."""
        if attrs["is_weekly"] and "time_zone" not in self.initial_data:
            for name in ("starts_at", "ends_at"):
                offset = datetime.fromisoformat(self.initial_data.get(name, EXAMPLE)).utcoffset()
                if offset:
                    message = (
                        "A weekly window needs a time_zone such as Europe/Berlin: a fixed offset "
                        "is one hour off for half of the year."
                    )
                    raise serializers.ValidationError({name: message})
        return attrs

    def get_open_until(self, window: FreezeWindow) -> str | None:
        until = open_until(window, self.context["now"])
        return until.isoformat() if until else None


@extend_schema_view(list=extend_schema(parameters=[MODEL]))
class FreezeViewSet(mixins.ListModelMixin, mixins.RetrieveModelMixin, GenericViewSet[FreezeWindow]):
    """Freeze windows: no rollout starts or advances in them; rollbacks never wait."""

    serializer_class = FreezeSerializer
    lookup_value_regex = r"\d+"

    def get_queryset(self) -> QuerySet[FreezeWindow]:
        rows = FreezeWindow.objects.select_related("model").order_by("starts_at", "id")
        request = getattr(self, "request", None)
        name = request.query_params.get("model") if request and self.action == "list" else None
        return rows.filter(Q(model=None) | Q(model__name=name)) if name else rows

    def get_serializer_context(self) -> dict[str, Any]:
        return {**super().get_serializer_context(), "now": database_now()}

    @extend_schema(request=FreezeSerializer, responses={201: FreezeSerializer})
    def create(self, request: Request) -> Response:
        """Freeze one model, or all models, which needs the role admin on all models."""
        serializer = self.get_serializer(data=request.data)
        serializer.is_valid(raise_exception=True)
        data = dict(serializer.validated_data)
        name = data.pop("model")["name"]
        model = find_model(name) if name else None
        require_role(request.user, model, role_to_freeze(model))
        now = database_now()
        data.setdefault("starts_at", now)
        window = create_freeze(model=model, **data, actor=actor_of(request), now=now)
        return Response(self.get_serializer(window).data, status=status.HTTP_201_CREATED)

    @extend_schema(responses={204: None})
    def destroy(self, request: Request, pk: str) -> Response:
        """End an open window now; delete a weekly window or one that is not open."""
        window = self.get_object()
        require_role(request.user, window.model, role_to_freeze(window.model))
        end_freeze(window=window, actor=actor_of(request), now=database_now())
        return Response(status=status.HTTP_204_NO_CONTENT)


class RolloutPolicySerializer(StrictSerializer):
    """The maximum number of concurrent rollouts; null: no limit."""

    concurrent_max = serializers.IntegerField(min_value=1, max_value=2_147_483_647, allow_null=True)


class RolloutPolicyView(APIView):
    """The policy of all rollouts."""

    @extend_schema(responses=RolloutPolicySerializer)
    def get(self, request: Request) -> Response:
        return Response({"concurrent_max": concurrent_max()})

    @extend_schema(request=RolloutPolicySerializer, responses=RolloutPolicySerializer)
    def put(self, request: Request) -> Response:
        """Set the maximum number of concurrent rollouts; later ones wait in start order."""
        require_role(request.user, None, Role.ADMIN)
        serializer = RolloutPolicySerializer(data=request.data)
        serializer.is_valid(raise_exception=True)
        set_concurrent_max(
            limit=serializer.validated_data["concurrent_max"], actor=actor_of(request)
        )
        return self.get(request)


class QuarantineSerializer(serializers.ModelSerializer[Quarantine]):
    model = serializers.CharField(source="version.model.name")
    version = serializers.IntegerField(source="version.number")

    class Meta:
        model = Quarantine
        fields = ["model", "version", "reason", "rollout", "at"]


@extend_schema_view(list=extend_schema(parameters=[MODEL]))
class QuarantineViewSet(mixins.ListModelMixin, GenericViewSet[Quarantine]):
    """Versions that were rolled back; starting one needs an override until this is lifted."""

    serializer_class = QuarantineSerializer

    def get_queryset(self) -> QuerySet[Quarantine]:
        rows = Quarantine.objects.select_related("version__model").order_by("-at", "version")
        rows = rows.filter(version__in=ModelVersion.objects.kept())
        request = getattr(self, "request", None)
        name = request.query_params.get("model") if request else None
        return rows.filter(version__model__name=name) if name else rows

    @extend_schema(
        parameters=[
            OpenApiParameter("model", str, OpenApiParameter.PATH, description="Model name"),
            OpenApiParameter("number", int, OpenApiParameter.PATH, description="Version number"),
            OpenApiParameter(
                "reason", str, required=True, description="Why the version is trusted again"
            ),
        ],
        responses={204: None},
    )
    @action(
        detail=False,
        methods=["delete"],
        url_path=r"(?P<model>[^/]+)/(?P<number>\d+)",
        url_name="lift",
    )
    def lift(self, request: Request, model: str, number: str) -> Response:
        """Lift the quarantine of a version: its next rollout needs no override."""
        row = find_model(model)
        require_role(request.user, row, Role.OPERATOR)
        # Some proxies drop the body of a DELETE, so the reason may also be a query parameter.
        serializer = ReasonSerializer(data=request.data or request.query_params.dict())
        serializer.is_valid(raise_exception=True)
        lift_quarantine(
            version=find_version(row, number),
            reason=serializer.validated_data["reason"],
            actor=actor_of(request),
        )
        return Response(status=status.HTTP_204_NO_CONTENT)
