"""REST endpoints of serving: model settings, warm-up requests, tenants and their API keys."""

from __future__ import annotations

from typing import Any

from django.db.models import Count, Q, QuerySet
from drf_spectacular.utils import OpenApiParameter, extend_schema
from rest_framework import mixins, status
from rest_framework.decorators import action
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.routers import BaseRouter
from rest_framework.views import APIView
from rest_framework.viewsets import GenericViewSet

from apps.lib.clock import database_now
from apps.lib.errors import NotFound
from apps.models.access import actor_of, require_role
from apps.models.api import NUMBER
from apps.models.models import ApiKey, Role, Tenant
from apps.models.serializers import (
    ApiKeySerializer,
    ModelSerializer,
    NewApiKeySerializer,
    QuotaSerializer,
    ServingPolicySerializer,
    TenantSerializer,
    VersionSerializer,
    WarmupSerializer,
)
from apps.rollouts import tenants
from apps.rollouts.history_api import ServingHistoryMixin
from apps.rollouts.retirement_api import RetirementViewSet
from apps.rollouts.serving_policies import change_settings, change_warmup

KEY_ID = OpenApiParameter("key_id", int, OpenApiParameter.PATH, description="API key id")


def register(router: BaseRouter) -> None:
    """Add these endpoints to the API's router."""
    router.register("models", ServedModelViewSet, basename="model")
    router.register("tenants", TenantViewSet, basename="tenant")


class ServedModelViewSet(ServingHistoryMixin, RetirementViewSet):
    """Models with their versions, serving settings and serving history."""

    @extend_schema(request=ModelSerializer(partial=True), responses=ModelSerializer)
    def partial_update(self, request: Request, name: str) -> Response:
        """Change serving settings: timeout, batching, breaker, cache, unit key."""
        model = self.get_object()
        require_role(request.user, model, Role.ADMIN)
        serializer = ModelSerializer(model, data=request.data, partial=True)
        serializer.is_valid(raise_exception=True)
        row = change_settings(
            model=model, actor=actor_of(request), now=database_now(), **serializer.validated_data
        )
        return Response(ModelSerializer(row).data)

    @extend_schema(parameters=[NUMBER], request=WarmupSerializer, responses=VersionSerializer)
    @action(
        detail=True,
        methods=["put"],
        url_path=r"versions/(?P<number>\d+)/warmup",
        url_name="version-warmup",
    )
    def warmup(self, request: Request, name: str, number: str) -> Response:
        """Set the requests that a version must answer before it gets traffic."""
        version = self.find_version(number)
        require_role(request.user, version.model, Role.ADMIN)
        serializer = WarmupSerializer(data=request.data)
        serializer.is_valid(raise_exception=True)
        change_warmup(
            version=version,
            requests=serializer.validated_data["requests"],
            actor=actor_of(request),
            now=database_now(),
        )
        return Response(VersionSerializer(self.find_version(number)).data)


class TenantViewSet(mixins.ListModelMixin, mixins.RetrieveModelMixin, GenericViewSet[Tenant]):
    """Tenants: quotas and API keys of the applications that request predictions."""

    queryset = Tenant.objects.annotate(
        active_keys=Count("keys", filter=Q(keys__revoked_at=None))
    ).order_by("name")
    serializer_class = TenantSerializer
    lookup_field = "name"
    lookup_value_regex = "[^/]+"

    @extend_schema(request=TenantSerializer, responses={201: TenantSerializer})
    def create(self, request: Request) -> Response:
        """Create a tenant. Its quota applies once it has an API key."""
        require_role(request.user, None, Role.ADMIN)
        serializer = TenantSerializer(data=request.data)
        serializer.is_valid(raise_exception=True)
        tenant = tenants.create_tenant(
            **serializer.validated_data, actor=actor_of(request), now=database_now()
        )
        return Response(self._response_data(tenant), status=status.HTTP_201_CREATED)

    @extend_schema(request=QuotaSerializer(partial=True), responses=TenantSerializer)
    def partial_update(self, request: Request, name: str) -> Response:
        """Change the quota of a tenant."""
        tenant = self.get_object()
        require_role(request.user, None, Role.ADMIN)
        serializer = QuotaSerializer(tenant, data=request.data, partial=True)
        serializer.is_valid(raise_exception=True)
        tenants.change_quota(
            tenant=tenant, **serializer.validated_data, actor=actor_of(request), now=database_now()
        )
        return Response(self._response_data(tenant))

    def destroy(self, request: Request, name: str) -> Response:
        """Delete a tenant and its API keys. Requests with these keys are refused."""
        tenant = self.get_object()
        require_role(request.user, None, Role.ADMIN)
        tenants.delete_tenant(tenant=tenant, actor=actor_of(request), now=database_now())
        return Response(status=status.HTTP_204_NO_CONTENT)

    @extend_schema(responses=ApiKeySerializer(many=True))
    @action(detail=True)
    def keys(self, request: Request, name: str) -> Response:
        """List the API keys of a tenant, newest first, revoked ones included."""
        rows: QuerySet[Any] = self._keys().order_by("-id")
        page = self.paginate_queryset(rows)
        return self.get_paginated_response(ApiKeySerializer(page, many=True).data)

    @extend_schema(request=ApiKeySerializer, responses={201: NewApiKeySerializer})
    @keys.mapping.post
    def create_key(self, request: Request, name: str) -> Response:
        """Create an API key. Only this response contains the key; it is not stored."""
        tenant = self.get_object()
        require_role(request.user, None, Role.ADMIN)
        serializer = ApiKeySerializer(data=request.data)
        serializer.is_valid(raise_exception=True)
        key, secret = tenants.create_key(
            tenant=tenant,
            name=serializer.validated_data["name"],
            models=serializer.validated_data.get("opens", ()),
            actor=actor_of(request),
            now=database_now(),
        )
        body = {**ApiKeySerializer(key).data, "key": secret}
        headers = {"Cache-Control": "no-store"}
        return Response(body, status=status.HTTP_201_CREATED, headers=headers)

    @extend_schema(parameters=[KEY_ID], request=None, responses=ApiKeySerializer)
    @action(
        detail=True,
        methods=["post"],
        url_path=r"keys/(?P<key_id>\d+)/revoke",
        url_name="key-revoke",
    )
    def revoke_key(self, request: Request, name: str, key_id: str) -> Response:
        """Revoke an API key. Data planes get the new routing table at once."""
        key = self._keys().filter(pk=int(key_id)).first()
        if key is None:
            raise NotFound(f"{name} has no API key {key_id}.")
        require_role(request.user, None, Role.ADMIN)
        row = tenants.revoke_key(key=key, actor=actor_of(request), now=database_now())
        return Response(ApiKeySerializer(row).data)

    def _keys(self) -> QuerySet[ApiKey]:
        return self.get_object().keys.select_related("tenant")

    def _response_data(self, tenant: Tenant) -> Any:
        return TenantSerializer(self.get_queryset().get(pk=tenant.pk)).data


class ServingPolicyView(APIView):
    """The policy of all requests of all models."""

    @extend_schema(responses=ServingPolicySerializer)
    def get(self, request: Request) -> Response:
        return Response({"key_required": tenants.is_key_required()})

    @extend_schema(request=ServingPolicySerializer, responses=ServingPolicySerializer)
    def put(self, request: Request) -> Response:
        """Require an API key of all requests, or answer requests without one anonymously."""
        require_role(request.user, None, Role.ADMIN)
        serializer = ServingPolicySerializer(data=request.data)
        serializer.is_valid(raise_exception=True)
        tenants.require_keys(
            required=serializer.validated_data["key_required"],
            actor=actor_of(request),
            now=database_now(),
        )
        return self.get(request)
