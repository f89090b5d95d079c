"""REST API of what holds rollouts up: freeze windows, the limit, quarantine."""

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

MODEL = OpenApiParameter("model", str, description="Only those that concern this model")


def register(router: BaseRouter) -> None:
    """Add these endpoints to the API's router."""
    router.register("freezes", FreezeViewSet, basename="freeze")
    router.register("quarantine", QuarantineViewSet, basename="quarantine")


class FreezeSerializer(StrictSerializer):
    """`model` null: all models; without `starts_at` it starts now.

    `time_zone`, an IANA name, is by whose clocks a weekly window comes again. `open_until` is null
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
        """Refuse a weekly window whose offset is not UTC and whose time zone is not named."""
        if attrs["is_weekly"] and "time_zone" not in self.initial_data:
            for name in ("starts_at", "ends_at"):
                offset = datetime.fromisoformat(self.initial_data.get(name, EXAMPLE)).utcoffset()
                if offset:
                    told = (
                        "A weekly window needs its time_zone, such as Europe/Berlin: an offset "
                        "alone is an hour off in the other half of the year."
                    )
                    raise serializers.ValidationError({name: told})
        return attrs

    def get_open_until(self, window: FreezeWindow) -> str | None:
        until = open_until(window, self.context["now"])
        return until.isoformat() if until else None


@extend_schema_view(list=extend_schema(parameters=[MODEL]))
class FreezeViewSet(mixins.ListModelMixin, mixins.RetrieveModelMixin, GenericViewSet[FreezeWindow]):
    """Times in which nothing starts and nothing gets further; going back never waits."""

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
        """Freeze a model, or all of them; the latter needs the role admin on all models."""
        given = self.get_serializer(data=request.data)
        given.is_valid(raise_exception=True)
        asked = dict(given.validated_data)
        name = asked.pop("model")["name"]
        model = find_model(name) if name else None
        require_role(request.user, model, role_to_freeze(model))
        now = database_now()
        asked.setdefault("starts_at", now)
        window = create_freeze(model=model, **asked, actor=actor_of(request), now=now)
        return Response(self.get_serializer(window).data, status=status.HTTP_201_CREATED)

    @extend_schema(responses={204: None})
    def destroy(self, request: Request, pk: str) -> Response:
        """End an open window now, or delete one that is not open or comes again each week."""
        window = self.get_object()
        require_role(request.user, window.model, role_to_freeze(window.model))
        end_freeze(window=window, actor=actor_of(request), now=database_now())
        return Response(status=status.HTTP_204_NO_CONTENT)


class RolloutPolicySerializer(StrictSerializer):
    """So many rollouts may be under way at once; null: any number."""

    concurrent_max = serializers.IntegerField(min_value=1, max_value=2_147_483_647, allow_null=True)


class RolloutPolicyView(APIView):
    """What holds for all rollouts."""

    @extend_schema(responses=RolloutPolicySerializer)
    def get(self, request: Request) -> Response:
        return Response({"concurrent_max": concurrent_max()})

    @extend_schema(request=RolloutPolicySerializer, responses=RolloutPolicySerializer)
    def put(self, request: Request) -> Response:
        """Let so many rollouts be under way at once; the others wait in the order they started."""
        require_role(request.user, None, Role.ADMIN)
        given = RolloutPolicySerializer(data=request.data)
        given.is_valid(raise_exception=True)
        set_concurrent_max(limit=given.validated_data["concurrent_max"], actor=actor_of(request))
        return self.get(request)


class QuarantineSerializer(serializers.ModelSerializer[Quarantine]):
    model = serializers.CharField(source="version.model.name")
    version = serializers.IntegerField(source="version.number")

    class Meta:
        model = Quarantine
        fields = ["model", "version", "reason", "rollout", "at"]


@extend_schema_view(list=extend_schema(parameters=[MODEL]))
class QuarantineViewSet(mixins.ListModelMixin, GenericViewSet[Quarantine]):
    """Versions that were rolled back: to try one again needs an override, or this lifted."""

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
            OpenApiParameter("reason", str, required=True, description="Why it may be trusted"),
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
        """Let a version be rolled out again without an override."""
        found = find_model(model)
        require_role(request.user, found, Role.OPERATOR)
        # Some proxies drop what a DELETE carries, so that the reason may stand in the address.
        given = ReasonSerializer(data=request.data or request.query_params.dict())
        given.is_valid(raise_exception=True)
        lift_quarantine(
            version=find_version(found, number),
            reason=given.validated_data["reason"],
            actor=actor_of(request),
        )
        return Response(status=status.HTTP_204_NO_CONTENT)
