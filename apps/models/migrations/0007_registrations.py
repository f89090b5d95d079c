import uuid

import django.db.models.deletion
from django.db import migrations, models


class Migration(migrations.Migration):
    dependencies = [("registry", "0006_imports_tried_again")]

    operations = [
        migrations.CreateModel(
            name="Registration",
            fields=[
                ("id", models.UUIDField(default=uuid.uuid4, primary_key=True, serialize=False)),
                ("model_name", models.CharField(max_length=100)),
                ("uri", models.CharField(max_length=1000)),
                ("is_upload", models.BooleanField(default=False)),
                ("metadata", models.JSONField(default=dict)),
                ("actor", models.CharField(max_length=150)),
                ("origin", models.CharField(blank=True, max_length=100)),
                (
                    "state",
                    models.CharField(
                        choices=[
                            ("waiting", "Waiting"),
                            ("inspecting", "Inspecting"),
                            ("registered", "Registered"),
                            ("refused", "Refused"),
                        ],
                        default="waiting",
                        max_length=20,
                    ),
                ),
                ("stage", models.CharField(blank=True, max_length=200)),
                ("stage_at", models.DateTimeField()),
                ("code", models.CharField(blank=True, max_length=50)),
                ("reason", models.TextField(blank=True)),
                ("detail", models.JSONField(blank=True, default=dict)),
                ("attempts", models.PositiveIntegerField(default=0)),
                ("created_at", models.DateTimeField(db_index=True)),
                ("settled_at", models.DateTimeField(blank=True, db_index=True, null=True)),
                (
                    "version",
                    models.ForeignKey(
                        blank=True,
                        null=True,
                        on_delete=django.db.models.deletion.SET_NULL,
                        related_name="registrations",
                        to="registry.modelversion",
                    ),
                ),
            ],
            options={"ordering": ["-created_at"]},
        ),
    ]
