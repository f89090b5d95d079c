"""REST API of imports: upload a file, follow its progress, read the refused rows."""

from __future__ import annotations

from typing import Any

from django.db.models import QuerySet
from django.http import HttpResponse
from drf_spectacular.types import OpenApiTypes
from drf_spectacular.utils import extend_schema, extend_schema_view
from rest_framework import mixins, serializers, status
from rest_framework.decorators import action
from rest_framework.parsers import MultiPartParser
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.viewsets import GenericViewSet

from apps.experiments.imports import selectors
from apps.experiments.imports.services import start_import
from apps.experiments.models import OutcomeImport, RefusedRow
from apps.lib.clock import database_now
from apps.lib.errors import Invalid
from apps.models.access import actor_of, require_role
from apps.models.models import Role
from apps.models.uploads import check_upload, uploaded_files


class ImportSerializer(serializers.ModelSerializer[OutcomeImport]):
    class Meta:
        model = OutcomeImport
        fields = [
            "id", "filename", "bytes", "format", "state", "error", "rows", "recorded", "duplicates",
            "unexposed", "refused", "actor", "at", "ended_at",
        ]  # fmt: skip
        read_only_fields = fields


class ImportInputSerializer(serializers.Serializer[Any]):
    file = serializers.FileField(help_text="CSV or Parquet; see docs/ingestion.md.")


class RefusedRowSerializer(serializers.ModelSerializer[RefusedRow]):
    class Meta:
        model = RefusedRow
        fields = ["row", "event_id", "metric", "reason"]
        read_only_fields = fields


@extend_schema_view(
    list=extend_schema(summary="List imports of outcomes, newest first"),
    retrieve=extend_schema(summary="Get the progress of an import and the counts of its rows"),
)
class ImportViewSet(
    mixins.ListModelMixin, mixins.RetrieveModelMixin, GenericViewSet[OutcomeImport]
):
    """Outcomes from CSV and Parquet files."""

    serializer_class = ImportSerializer
    lookup_value_converter = "uuid"

    def get_queryset(self) -> QuerySet[OutcomeImport]:
        return selectors.imports()

    def get_parsers(self) -> list[Any]:
        return [MultiPartParser()] if self.request and self.request.method == "POST" else []

    @extend_schema(
        summary="Upload a file; a worker reads it",
        description="The response holds the id. Poll until `state` is `done` or `failed`.",
        request={"multipart/form-data": ImportInputSerializer},
        responses={202: ImportSerializer},
    )
    def create(self, request: Request) -> Response:
        require_role(request.user, None, Role.OPERATOR)
        if not request.headers.get("Content-Length"):
            raise Invalid("Content-Length is required; chunked uploads are not supported.")
        data = request.data
        check_upload(request._request)
        form = ImportInputSerializer(data=data)
        form.is_valid(raise_exception=True)
        ((name, path),) = uploaded_files(form.validated_data["file"])
        imported = start_import(
            filename=name, path=path, actor=actor_of(request), now=database_now()
        )
        return Response(ImportSerializer(imported).data, status=status.HTTP_202_ACCEPTED)

    @extend_schema(
        summary="List the refused rows, in order",
        responses=RefusedRowSerializer(many=True),
    )
    @action(detail=True, methods=["get"], serializer_class=RefusedRowSerializer)
    def refused(self, request: Request, pk: Any) -> Response:
        rows: Any = selectors.refused_rows(selectors.find_import(pk))
        page: Any = self.paginate_queryset(rows)
        return self.get_paginated_response(RefusedRowSerializer(page, many=True).data)

    @extend_schema(
        summary="Get the refused rows as CSV",
        responses={(200, "text/csv"): OpenApiTypes.STR},
    )
    @action(detail=True, methods=["get"], url_path="refused/csv")
    def refused_csv(self, request: Request, pk: Any) -> HttpResponse:
        lines = "".join(selectors.refused_csv(selectors.find_import(pk)))
        return HttpResponse(lines, content_type="text/csv; charset=utf-8")
