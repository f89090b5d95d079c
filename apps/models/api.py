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

ARCHIVED = OpenApiParameter("archived", bool, description="With those that are archived.")


def _archived(request: Request) -> bool:
    return request.query_params.get("archived", "").lower() in {"1", "true", "yes"}


def register(router: BaseRouter) -> None:
    """Add this app's endpoints to the API's router; `apps.rollouts` adds those of models."""
    router.register("registrations", RegistrationViewSet, basename="registration")
    router.register("refused-imports", RefusedImportViewSet, basename="refused-import")


class ModelViewSet(
    mixins.ListModelMixin, mixins.RetrieveModelMixin, GenericViewSet[RegisteredModel]
):
    """Models: what each serves with, and its versions.

    What changes a routing table is added by `apps.rollouts.serving_api`.
    """

    queryset = RegisteredModel.objects.select_related("stable", "previous_stable")
    serializer_class = ModelSerializer
    lookup_field = "name"
    lookup_value_regex = "[^/]+"

    def get_queryset(self) -> QuerySet[RegisteredModel]:
        """Return all of them for one by its name; lists leave out what is archived or deleted."""
        rows = super().get_queryset()
        if self.action != "list":
            return rows
        kept = {RegistryState.ACTIVE} | (
            {RegistryState.ARCHIVED} if _archived(self.request) else set()
        )
        return rows.filter(state__in=kept)

    @extend_schema(parameters=[ARCHIVED])
    def list(self, request: Request, *args: Any, **kwargs: Any) -> Response:
        """All models, in the order of names, without those that are archived."""
        return super().list(request, *args, **kwargs)

    @extend_schema(parameters=[ARCHIVED], responses=VersionSerializer(many=True))
    @action(detail=True, parser_classes=[BoundedJSONParser, MultiPartParser])
    def versions(self, request: Request, name: str) -> Response:
        """The model's versions, the newest first, without those that are archived or deleted."""
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
        """Register a version: an ONNX file as multipart form, or JSON with the URI of one.

        The answer is 202 with a registration: ask for it, at Location, until it is settled. The
        model is made with its first version. Metrics, parameters and the like may come with it.
        The same file with the same metadata is refused as a conflict, with the number that it has.
        """
        row = register_version(request, name)
        location = reverse("api:registration-detail", args=[row.pk])
        document = RegistrationSerializer(row).data
        return Response(document, status=202, headers={"Location": location})

    @extend_schema(responses=AliasSerializer(many=True))
    @action(detail=True, pagination_class=None)
    def aliases(self, request: Request, name: str) -> Response:
        """The model's aliases. `is_pending`: MLflow does not have it yet."""
        rows = self.get_object().aliases.select_related("version")
        return Response(AliasSerializer(rows, many=True).data)

    @extend_schema(parameters=[ALIAS], request=AliasSerializer, responses=AliasSerializer)
    @action(detail=True, methods=["put"], url_path="aliases/(?P<alias>[^/]+)", url_name="alias")
    def alias(self, request: Request, name: str, alias: str) -> Response:
        """Move an alias other than champion, here at once and in MLflow soon after."""
        return set_alias(request, self.get_object(), alias)

    @extend_schema(parameters=[ALIAS], request=None, responses={204: None})
    @alias.mapping.delete
    def drop_alias(self, request: Request, name: str, alias: str) -> Response:
        """Take an alias away, in MLflow and here; 503 while MLflow does not answer."""
        return drop_alias(request, self.get_object(), alias)

    @extend_schema(parameters=[NUMBER], responses=VersionSerializer)
    @action(detail=True, url_path=r"versions/(?P<number>\d+)", url_name="version")
    def version(self, request: Request, name: str, number: str) -> Response:
        """One version with its signature, training record and deployments."""
        return Response(VersionSerializer(self.find_version(number)).data)

    @extend_schema(parameters=[NUMBER], request=None, responses=VersionSerializer)
    @action(
        detail=True,
        methods=["post"],
        url_path=r"versions/(?P<number>\d+)/deploy",
        url_name="version-deploy",
    )
    def deploy(self, request: Request, name: str, number: str) -> Response:
        """Load a version without traffic, reachable by its explicit path; retry a failed one."""
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
        """Import what MLflow has and we have not; beat does the same every few seconds.

        409 while a sync is running that does not end within ten seconds.
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
    found = (
        versions.filter(number=int(named)).first()
        if named.isdecimal()
        else versions.filter(aliases__name=named).first()
    )
    if found is None:
        raise NotFound(f"{model.name} has no version or alias {named!r}.")
    return found


class RefusedImportViewSet(mixins.ListModelMixin, GenericViewSet[RefusedImport]):
    """Versions that the registry has and that cannot be served, with the reasons."""

    queryset = RefusedImport.objects.order_by("model_name", "-number")
    serializer_class = RefusedImportSerializer

    @extend_schema(request=None, responses={204: None})
    @action(detail=True, methods=["post"])
    def retry(self, request: Request, pk: str) -> Response:
        """Forget a refusal, so that the next reconcile looks at the version again."""
        require_role(request.user, None, Role.OPERATOR)
        refused = get_object_or_404(RefusedImport, pk=pk)
        if refused.delete()[0] == 0:
            raise Conflict("Somebody else was faster.")
        return Response(status=204)
