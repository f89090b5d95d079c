from django.db import migrations, models


class Migration(migrations.Migration):
    dependencies = [("registry", "0005_sources_and_aliases")]

    operations = [
        migrations.AddField(
            model_name="refusedimport",
            name="attempts",
            field=models.PositiveIntegerField(db_default=0, default=0),
        ),
        migrations.AddField(
            model_name="refusedimport",
            name="retry_at",
            field=models.DateTimeField(blank=True, null=True),
        ),
        migrations.AddField(
            model_name="registeredmodel",
            name="registry_problem",
            field=models.TextField(blank=True, db_default="", default=""),
        ),
    ]
