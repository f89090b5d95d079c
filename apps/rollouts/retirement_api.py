"""REST API of what takes versions and models out of the way; see `apps.rollouts.undeploying`."""

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
    """Undeploy, archive, restore and delete, of a model and of its versions.

    Each is refused as a conflict while anything needs it; `detail.needs` lists what.
    """

    @extend_schema(parameters=[NUMBER], request=RetirementSerializer, responses=VersionSerializer)
    @action(detail=True, methods=["post"], url_path=f"{OF_VERSION}/undeploy",
            url_name="version-undeploy")  # fmt: skip
    def undeploy_version(self, request: Request, name: str, number: str) -> Response:
        """Unload a version that nothing needs; its deployments go over draining to absent."""
        return self._version(request, number, Role.OPERATOR, undeploying.undeploy_version)

    @extend_schema(parameters=[NUMBER], request=RetirementSerializer, responses=VersionSerializer)
    @action(detail=True, methods=["post"], url_path=f"{OF_VERSION}/archive",
            url_name="version-archive")  # fmt: skip
    def archive_version(self, request: Request, name: str, number: str) -> Response:
        """Unload a version and leave it out of lists until it is restored."""
        return self._version(request, number, Role.OPERATOR, undeploying.archive_version)

    @extend_schema(parameters=[NUMBER], request=None, responses=VersionSerializer)
    @action(detail=True, methods=["post"], url_path=f"{OF_VERSION}/restore",
            url_name="version-restore")  # fmt: skip
    def restore_version(self, request: Request, name: str, number: str) -> Response:
        """Bring an archived version back."""
        version = self.find_version(number)
        require_role(request.user, version.model, Role.OPERATOR)
        undeploying.restore_version(version=version, actor=actor_of(request), now=database_now())
        return self._shown(number)

    @extend_schema(parameters=[NUMBER], request=None, responses={202: VersionSerializer})
    @ModelViewSet.version.mapping.delete
    def delete_version(self, request: Request, name: str, number: str) -> Response:
        """Unload a version, then delete its files; its row stays `deleted`, for history.

        Its number is never given again.
        """
        answer = self._version(request, number, Role.ADMIN, undeploying.delete_version)
        answer.status_code = 202
        return answer

    @extend_schema(request=RetirementSerializer, responses=ModelSerializer)
    @action(detail=True, methods=["post"])
    def undeploy(self, request: Request, name: str) -> Response:
        """Take a model out of service: nothing is stable, nothing loaded, and it answers 404.

        Refused while it is asked for: no request may have come for ten minutes.
        """
        return self._model(request, Role.ADMIN, undeploying.undeploy_model)

    @extend_schema(request=RetirementSerializer, responses=ModelSerializer)
    @action(detail=True, methods=["post"])
    def archive(self, request: Request, name: str) -> Response:
        """Leave a model that is out of service out of lists, until it is restored."""
        return self._model(request, Role.OPERATOR, undeploying.archive_model)

    @extend_schema(request=None, responses=ModelSerializer)
    @action(detail=True, methods=["post"])
    def restore(self, request: Request, name: str) -> Response:
        """Bring an archived model back."""
        model = self.get_object()
        require_role(request.user, model, Role.OPERATOR)
        row = undeploying.restore_model(model=model, actor=actor_of(request), now=database_now())
        return Response(ModelSerializer(row).data)

    @extend_schema(request=None, responses={202: ModelSerializer})
    def destroy(self, request: Request, name: str) -> Response:
        """Delete a model that is out of service, with all its versions and their files.

        What rollouts and experiments say of it stays. Its name is free; numbers go on.
        """
        answer = self._model(request, Role.ADMIN, undeploying.delete_model)
        answer.status_code = 202
        return answer

    def _version(
        self, request: Request, number: str, role: Role, act: Callable[..., ModelVersion]
    ) -> Response:
        version = self.find_version(number)
        require_role(request.user, version.model, role)
        act(version=version, actor=actor_of(request), now=database_now(), **_given(request))
        return self._shown(number)

    def _shown(self, number: str) -> Response:
        return Response(VersionSerializer(self.find_version(number)).data)

    def _model(self, request: Request, role: Role, act: Callable[..., RegisteredModel]) -> Response:
        model = self.get_object()
        require_role(request.user, model, role)
        act(model=model, actor=actor_of(request), now=database_now(), **_given(request))
        return Response(ModelSerializer(self.get_object()).data)


def _given(request: Request) -> dict[str, Any]:
    given = RetirementSerializer(data=request.data)
    given.is_valid(raise_exception=True)
    return dict(given.validated_data)
