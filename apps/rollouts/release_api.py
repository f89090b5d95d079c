"""REST endpoints of releases: rollouts of several models that advance together."""

from __future__ import annotations

from typing import Any

from django.db.models import QuerySet
from drf_spectacular.utils import extend_schema, extend_schema_field
from rest_framework import mixins, serializers, status
from rest_framework.decorators import action
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.routers import BaseRouter
from rest_framework.viewsets import GenericViewSet

from apps.lib.clock import database_now
from apps.models.access import actor_of, require_role
from apps.models.api import find_model, find_version
from apps.models.models import Role, valid_name
from apps.rollouts.models import Release
from apps.rollouts.plan_api import find_plan
from apps.rollouts.releases import abort_release, start_release
from apps.rollouts.selectors.releases import find_releases, state_of
from apps.rollouts.serializers import (
    AbortSerializer,
    OverridesSerializer,
    RolloutSerializer,
)
from apps.rollouts.states import Phase


def register(router: BaseRouter) -> None:
    """Add these endpoints to the API's router."""
    router.register("releases", ReleaseViewSet, basename="release")


class ReleaseSerializer(serializers.ModelSerializer[Release]):
    """`state` is the joint phase of the rollouts."""

    plan = serializers.CharField(source="plan_name")
    state = serializers.SerializerMethodField()
    rollouts = RolloutSerializer(many=True)

    class Meta:
        model = Release
        fields = ["id", "name", "plan", "state", "started_by", "started_at", "rollouts"]

    @extend_schema_field(serializers.ChoiceField(choices=Phase.choices))
    def get_state(self, release: Release) -> str:
        return state_of(release).value


class StartReleaseSerializer(OverridesSerializer):
    """`versions`: model name to version, a number or an alias such as `candidate`."""

    name = serializers.CharField(max_length=100, validators=[valid_name])
    plan = serializers.CharField(required=False, allow_null=True, default=None)
    reason = serializers.CharField(required=False, default="", allow_blank=True, max_length=1_000)
    versions = serializers.DictField(child=serializers.CharField(), allow_empty=False)

    def validate_versions(self, versions: dict[str, str]) -> dict[str, str]:
        """Validate the model names; the field validates only the values."""
        for name in versions:
            valid_name(name)
        return versions


class ReleaseViewSet(mixins.ListModelMixin, mixins.RetrieveModelMixin, GenericViewSet[Release]):
    """Releases: one rollout for each model, in step. One rollback rolls back all."""

    serializer_class = ReleaseSerializer
    lookup_value_regex = "[0-9a-fA-F-]{36}"

    def get_queryset(self) -> QuerySet[Release]:
        return find_releases()

    @extend_schema(request=StartReleaseSerializer, responses={201: ReleaseSerializer})
    def create(self, request: Request) -> Response:
        """Start one rollout for each model, all by one plan. All start or none does."""
        serializer = StartReleaseSerializer(data=request.data)
        serializer.is_valid(raise_exception=True)
        data = serializer.validated_data
        targets = {}
        for name, version in data["versions"].items():
            model = find_model(name)
            require_role(request.user, model, Role.OPERATOR)
            targets[model] = find_version(model, version)
        release = start_release(
            name=data["name"],
            targets=targets,
            plan=find_plan(data["plan"]) if data["plan"] else None,
            actor=actor_of(request),
            now=database_now(),
            overrides=data["overrides"],
            reason=data["reason"],
        )
        return Response(self._response_data(release), status=status.HTTP_201_CREATED)

    @extend_schema(request=AbortSerializer, responses=ReleaseSerializer)
    @action(detail=True, methods=["post"])
    def abort(self, request: Request, pk: str) -> Response:
        """Take all traffic off all targets now. Promoted models are rolled back."""
        release = self.get_object()
        for rollout in release.rollouts.all():
            require_role(request.user, rollout.model, Role.OPERATOR)
        serializer = AbortSerializer(data=request.data)
        serializer.is_valid(raise_exception=True)
        abort_release(
            release=release,
            actor=actor_of(request),
            now=database_now(),
            reason=serializer.validated_data["reason"],
        )
        return Response(self._response_data(release))

    def _response_data(self, release: Release) -> Any:
        return ReleaseSerializer(find_releases().get(pk=release.pk)).data
