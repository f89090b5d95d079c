"""REST API of registrations (uploads, URIs), aliases, and MLflow's webhook."""

from __future__ import annotations

from typing import Any

from drf_spectacular.utils import OpenApiParameter, extend_schema
from rest_framework import mixins, status
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.views import APIView
from rest_framework.viewsets import GenericViewSet

from apps.lib.clock import database_now
from apps.lib.errors import Invalid
from apps.lib.parsing import load_json
from apps.models.access import actor_of, require_role
from apps.models.aliases import delete_alias, move_alias
from apps.models.metadata import Metadata
from apps.models.models import RegisteredModel, Registration, Role
from apps.models.registration_jobs import submit_file, submit_uri
from apps.models.registry_events import ENTITIES, check_webhook, queue_sync
from apps.models.serializers import (
    AliasSerializer,
    HintSerializer,
    ReferenceSerializer,
    RegistrationSerializer,
    UploadSerializer,
)
from apps.models.uploads import check_upload, uploaded_files

ALIAS = OpenApiParameter("alias", str, OpenApiParameter.PATH, description="For example candidate")


def require_register(request: Request, name: str) -> None:
    """Raise Forbidden unless the user may add versions to the model, or create it."""
    require_role(request.user, RegisteredModel.objects.filter(name=name).first(), Role.OPERATOR)


def register_version(request: Request, name: str) -> Registration:
    """Accept a registration: a multipart form with a file, or JSON with a URI."""
    require_register(request, name)
    is_upload = request.content_type.startswith("multipart/")
    if is_upload and not request.headers.get("Content-Length"):
        raise Invalid("Send the form with a Content-Length; chunked requests are not accepted.")
    body = request.data
    check_upload(request._request)
    serializer = (UploadSerializer if is_upload else ReferenceSerializer)(data=body)
    serializer.is_valid(raise_exception=True)
    metadata: Metadata = serializer.metadata()
    actor, now = actor_of(request), database_now()
    if not is_upload:
        uri = serializer.validated_data["uri"]
        return submit_uri(name=name, uri=uri, metadata=metadata, actor=actor, now=now)
    data = serializer.validated_data
    files = uploaded_files(data["file"], data.get("external_data"))
    return submit_file(name=name, files=files, metadata=metadata, actor=actor, now=now)


def set_alias(request: Request, model: RegisteredModel, alias: str) -> Response:
    require_role(request.user, model, Role.OPERATOR)
    serializer = AliasSerializer(data=request.data)
    serializer.is_valid(raise_exception=True)
    number = serializer.validated_data["version"]["number"]
    version = model.versions.filter(number=number).first()
    if version is None:
        raise Invalid(f"{model.name} has no version {number}.", field="version")
    moved = move_alias(name=alias, version=version, actor=actor_of(request))
    return Response(AliasSerializer(moved).data)


def drop_alias(request: Request, model: RegisteredModel, alias: str) -> Response:
    require_role(request.user, model, Role.OPERATOR)
    delete_alias(model=model, name=alias, actor=actor_of(request))
    return Response(status=status.HTTP_204_NO_CONTENT)


class RegistrationViewSet(
    mixins.ListModelMixin, mixins.RetrieveModelMixin, GenericViewSet[Registration]
):
    """Registrations with their results, newest first. Kept for 30 days."""

    queryset = Registration.objects.select_related("version")
    serializer_class = RegistrationSerializer


class MlflowWebhookView(APIView):
    """Receives MLflow's registry webhooks. They only make the next sync run sooner."""

    authentication_classes = ()
    permission_classes = ()

    @extend_schema(
        request={"application/json": {"type": "object"}},
        responses={202: HintSerializer},
        auth=[],
        parameters=[
            OpenApiParameter(name, str, OpenApiParameter.HEADER, required=True)
            for name in ("X-MLflow-Signature", "X-MLflow-Delivery-Id", "X-MLflow-Timestamp")
        ],
    )
    def post(self, request: Request) -> Response:
        """Queue one sync for all events of a second; 404 without a shared secret."""
        body = request._request.body
        check_webhook(
            signature=request.headers.get("X-MLflow-Signature", ""),
            delivery_id=request.headers.get("X-MLflow-Delivery-Id", ""),
            timestamp=request.headers.get("X-MLflow-Timestamp", ""),
            body=body,
        )
        queued = _entity(body) in ENTITIES and queue_sync()
        return Response({"queued": queued}, status=status.HTTP_202_ACCEPTED)


def _entity(body: bytes) -> Any:
    event = load_json(body.decode("utf-8", "replace"))
    if not isinstance(event, dict) or not isinstance(event.get("entity"), str):
        raise Invalid("The body is not an event of MLflow: it has no entity.")
    return event["entity"]
