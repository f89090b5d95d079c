"""REST API of models, versions and the registry."""

from __future__ import annotations

from typing import Any, cast

from django.db.models import QuerySet
from django.shortcuts import get_object_or_404
from django.urls import reverse
from drf_spectacular.utils import OpenApiParameter, extend_schema
from rest_framework import mixins
from rest_framework.decorators import action
from rest_framework.parsers import MultiPartParser
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.routers import BaseRouter
from rest_framework.viewsets import GenericViewSet

from apps.lib.clock import database_now
from apps.lib.errors import Conflict, NotFound
from apps.lib.parsing import BoundedJSONParser
from apps.models.access import actor_of, require_role
from apps.models.models import Deployment, ModelVersion, RefusedImport, RegisteredModel, Role
from apps.models.registration_api import (
    ALIAS,
    RegistrationViewSet,
    drop_alias,
    register_version,
    set_alias,
)
from apps.models.registry import sync_now
from apps.models.serializers import (
    AliasSerializer,
    ModelSerializer,
    ReferenceSerializer,
    RefusedImportSerializer,
    RegistrationSerializer,
    SyncReportSerializer,
    UploadSerializer,
    VersionSerializer,
)
from apps.models.services import deploy_version, retry_deployment
from apps.models.states import DeploymentState, RegistryState

NUMBER = OpenApiParameter("number", int, OpenApiParameter.PATH, description="Version number")

ARCHIVED = OpenApiParameter("archived", bool, description="Include archived ones.")


def _archived(request: Request) -> bool:
    return request.query_params.get("archived", "").lower() in {"1", "true", "yes"}


def register(router: BaseRouter) -> None:
    """Add this app's endpoints to the API's router; `apps.rollouts` adds those of models."""
    router.register("registrations", RegistrationViewSet, basename="registration")
    router.register("refused-imports", RefusedImportViewSet, basename="refused-import")


class ModelViewSet(
    mixins.ListModelMixin, mixins.RetrieveModelMixin, GenericViewSet[RegisteredModel]
):
    """Models with their serving settings and versions.

    `apps.rollouts.serving_api` adds the actions that change the routing table.
    """

    queryset = RegisteredModel.objects.select_related("stable", "previous_stable")
    serializer_class = ModelSerializer
    lookup_field = "name"
    lookup_value_regex = "[^/]+"

    def get_queryset(self) -> QuerySet[RegisteredModel]:
        """Lists omit archived and deleted models; a model is found by name in any state."""
        rows = super().get_queryset()
        if self.action != "list":
            return rows
        kept = {RegistryState.ACTIVE} | (
            {RegistryState.ARCHIVED} if _archived(self.request) else set()
        )
        return rows.filter(state__in=kept)

    @extend_schema(parameters=[ARCHIVED])
    def list(self, request: Request, *args: Any, **kwargs: Any) -> Response:
        """List models by name, without archived ones unless requested."""
        return super().list(request, *args, **kwargs)

    @extend_schema(parameters=[ARCHIVED], responses=VersionSerializer(many=True))
    @action(detail=True, parser_classes=[BoundedJSONParser, MultiPartParser])
    def versions(self, request: Request, name: str) -> Response:
        """List versions, newest first, without deleted and, unless requested, archived ones."""
        rows = _versions().filter(model=self.get_object()).exclude(state=RegistryState.DELETED)
        if not _archived(request):
            rows = rows.exclude(state=RegistryState.ARCHIVED)
        page = cast(list[ModelVersion], self.paginate_queryset(cast(Any, rows)))
        return self.get_paginated_response(VersionSerializer(page, many=True).data)

    @extend_schema(
        request={"multipart/form-data": UploadSerializer, "application/json": ReferenceSerializer},
        responses={202: RegistrationSerializer},
    )
    @versions.mapping.post
    def register_version(self, request: Request, name: str) -> Response:
        """Register a version: an ONNX file as a multipart form, or its URI as JSON.

        The response is 202 with a registration. Poll it at Location until `is_settled`. The first
        version creates the model. The request may include metadata such as metrics and parameters.
        The same file with the same metadata is refused with 409 and the number of that version.
        """
        row = register_version(request, name)
        location = reverse("api:registration-detail", args=[row.pk])
        document = RegistrationSerializer(row).data
        return Response(document, status=202, headers={"Location": location})

    @extend_schema(responses=AliasSerializer(many=True))
    @action(detail=True, pagination_class=None)
    def aliases(self, request: Request, name: str) -> Response:
        """List the aliases of a model. `is_pending`: MLflow does not have it yet."""
        rows = self.get_object().aliases.select_related("version")
        return Response(AliasSerializer(rows, many=True).data)

    @extend_schema(parameters=[ALIAS], request=AliasSerializer, responses=AliasSerializer)
    @action(detail=True, methods=["put"], url_path="aliases/(?P<alias>[^/]+)", url_name="alias")
    def alias(self, request: Request, name: str, alias: str) -> Response:
        """Set an alias other than champion: here at once, in MLflow by the next sync."""
        return set_alias(request, self.get_object(), alias)

    @extend_schema(parameters=[ALIAS], request=None, responses={204: None})
    @alias.mapping.delete
    def drop_alias(self, request: Request, name: str, alias: str) -> Response:
        """Delete an alias in MLflow and here; 503 while MLflow does not respond."""
        return drop_alias(request, self.get_object(), alias)

    @extend_schema(parameters=[NUMBER], responses=VersionSerializer)
    @action(detail=True, url_path=r"versions/(?P<number>\d+)", url_name="version")
    def version(self, request: Request, name: str, number: str) -> Response:
        """Return a version with its signature, training data and deployments."""
        return Response(VersionSerializer(self.find_version(number)).data)

    @extend_schema(parameters=[NUMBER], request=None, responses=VersionSerializer)
    @action(
        detail=True,
        methods=["post"],
        url_path=r"versions/(?P<number>\d+)/deploy",
        url_name="version-deploy",
    )
    def deploy(self, request: Request, name: str, number: str) -> Response:
        """Load a version without traffic, served at its own path; retry a failed deployment."""
        version = self.find_version(number)
        require_role(request.user, version.model, Role.OPERATOR)
        actor, now = actor_of(request), database_now()
        failed = Deployment.objects.filter(version=version, state=DeploymentState.FAILED)
        for deployment in failed.select_related("version__model", "cluster"):
            retry_deployment(deployment=deployment, actor=actor, now=now)
        deploy_version(version=version, actor=actor, now=now)
        return Response(VersionSerializer(self.find_version(number)).data)

    @extend_schema(request=None, responses=SyncReportSerializer)
    @action(detail=False, methods=["post"])
    def sync(self, request: Request) -> Response:
        """Import missing versions and aliases from MLflow; a task does the same every 10 seconds.

        409 if another sync runs and does not end within 10 seconds.
        """
        require_role(request.user, None, Role.OPERATOR)
        report = sync_now()
        return Response(SyncReportSerializer(report).data)

    def find_version(self, number: str) -> ModelVersion:
        """Return the version of that number of the path's model. Raises NotFound."""
        model = self.get_object()
        version = _versions().filter(model=model, number=int(number)).first()
        if version is None:
            raise NotFound(f"{model.name} has no version {number}")
        return version


def _versions() -> QuerySet[ModelVersion]:
    return ModelVersion.objects.select_related("model").prefetch_related(
        "aliases", "deployments__cluster"
    )


def find_model(name: str) -> RegisteredModel:
    """Return the model of that name. Raises NotFound."""
    model = RegisteredModel.objects.filter(name=name).first()
    if model is None:
        raise NotFound(f"There is no model {name!r}.")
    return model


def find_version(model: RegisteredModel, named: str) -> ModelVersion:
    """Return a version of `model` by number or alias. Raises NotFound."""
    versions = model.versions.select_related("model")
    version = (
        versions.filter(number=int(named)).first()
        if named.isdecimal()
        else versions.filter(aliases__name=named).first()
    )
    if version is None:
        raise NotFound(f"{model.name} has no version or alias {named!r}.")
    return version


class RefusedImportViewSet(mixins.ListModelMixin, GenericViewSet[RefusedImport]):
    """Versions of MLflow's registry that cannot be served, with the reasons."""

    queryset = RefusedImport.objects.order_by("model_name", "-number")
    serializer_class = RefusedImportSerializer

    @extend_schema(request=None, responses={204: None})
    @action(detail=True, methods=["post"])
    def retry(self, request: Request, pk: str) -> Response:
        """Delete a refusal; the next sync reads the version again."""
        require_role(request.user, None, Role.OPERATOR)
        refused = get_object_or_404(RefusedImport, pk=pk)
        if refused.delete()[0] == 0:
            raise Conflict("The refusal was deleted already.")
        return Response(status=204)
