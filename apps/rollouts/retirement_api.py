"""REST endpoints that undeploy, archive, restore and delete versions and models."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from drf_spectacular.utils import extend_schema
from rest_framework.decorators import action
from rest_framework.request import Request
from rest_framework.response import Response

from apps.lib.clock import database_now
from apps.models.access import actor_of, require_role
from apps.models.api import NUMBER, ModelViewSet
from apps.models.models import ModelVersion, RegisteredModel, Role
from apps.models.serializers import ModelSerializer, RetirementSerializer, VersionSerializer
from apps.rollouts import undeploying

OF_VERSION = r"versions/(?P<number>\d+)"


class RetirementViewSet(ModelViewSet):
    """Undeploy, archive, restore and delete models and versions.

    Refused with a conflict while the model or version is in use; `detail.needs` lists by what.
    """

    @extend_schema(parameters=[NUMBER], request=RetirementSerializer, responses=VersionSerializer)
    @action(detail=True, methods=["post"], url_path=f"{OF_VERSION}/undeploy",
            url_name="version-undeploy")  # fmt: skip
    def undeploy_version(self, request: Request, name: str, number: str) -> Response:
        """Unload a version that is not in use; its deployments drain, then become absent."""
        return self._version(request, number, Role.OPERATOR, undeploying.undeploy_version)

    @extend_schema(parameters=[NUMBER], request=RetirementSerializer, responses=VersionSerializer)
    @action(detail=True, methods=["post"], url_path=f"{OF_VERSION}/archive",
            url_name="version-archive")  # fmt: skip
    def archive_version(self, request: Request, name: str, number: str) -> Response:
        """Unload a version and hide it from lists until it is restored."""
        return self._version(request, number, Role.OPERATOR, undeploying.archive_version)

    @extend_schema(parameters=[NUMBER], request=None, responses=VersionSerializer)
    @action(detail=True, methods=["post"], url_path=f"{OF_VERSION}/restore",
            url_name="version-restore")  # fmt: skip
    def restore_version(self, request: Request, name: str, number: str) -> Response:
        """Restore an archived version."""
        version = self.find_version(number)
        require_role(request.user, version.model, Role.OPERATOR)
        undeploying.restore_version(version=version, actor=actor_of(request), now=database_now())
        return self._response(number)

    @extend_schema(parameters=[NUMBER], request=None, responses={202: VersionSerializer})
    @ModelViewSet.version.mapping.delete
    def delete_version(self, request: Request, name: str, number: str) -> Response:
        """Unload a version, then delete its files. Its row stays as `deleted`, for history.

        Its number is never reused.
        """
        response = self._version(request, number, Role.ADMIN, undeploying.delete_version)
        response.status_code = 202
        return response

    @extend_schema(request=RetirementSerializer, responses=ModelSerializer)
    @action(detail=True, methods=["post"])
    def undeploy(self, request: Request, name: str) -> Response:
        """Take a model out of service: no stable version, nothing loaded, requests get 404.

        Refused while the model got a request in the last 10 minutes.
        """
        return self._model(request, Role.ADMIN, undeploying.undeploy_model)

    @extend_schema(request=RetirementSerializer, responses=ModelSerializer)
    @action(detail=True, methods=["post"])
    def archive(self, request: Request, name: str) -> Response:
        """Hide a model that is out of service from lists until it is restored."""
        return self._model(request, Role.OPERATOR, undeploying.archive_model)

    @extend_schema(request=None, responses=ModelSerializer)
    @action(detail=True, methods=["post"])
    def restore(self, request: Request, name: str) -> Response:
        """Restore an archived model."""
        model = self.get_object()
        require_role(request.user, model, Role.OPERATOR)
        row = undeploying.restore_model(model=model, actor=actor_of(request), now=database_now())
        return Response(ModelSerializer(row).data)

    @extend_schema(request=None, responses={202: ModelSerializer})
    def destroy(self, request: Request, name: str) -> Response:
        """Delete a model that is out of service, with all its versions and their files.

        Rollouts and experiments keep their records. The name can be reused; version numbers
        continue.
        """
        response = self._model(request, Role.ADMIN, undeploying.delete_model)
        response.status_code = 202
        return response

    def _version(
        self, request: Request, number: str, role: Role, act: Callable[..., ModelVersion]
    ) -> Response:
        version = self.find_version(number)
        require_role(request.user, version.model, role)
        act(version=version, actor=actor_of(request), now=database_now(), **_validated(request))
        return self._response(number)

    def _response(self, number: str) -> Response:
        return Response(VersionSerializer(self.find_version(number)).data)

    def _model(self, request: Request, role: Role, act: Callable[..., RegisteredModel]) -> Response:
        model = self.get_object()
        require_role(request.user, model, role)
        act(model=model, actor=actor_of(request), now=database_now(), **_validated(request))
        return Response(ModelSerializer(self.get_object()).data)


def _validated(request: Request) -> dict[str, Any]:
    serializer = RetirementSerializer(data=request.data)
    serializer.is_valid(raise_exception=True)
    return dict(serializer.validated_data)
