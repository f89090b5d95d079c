from django.contrib.postgres.fields import ArrayField
from django.db import migrations, models


def _names():
    return ArrayField(models.CharField(max_length=100), null=True)


class Migration(migrations.Migration):
    dependencies = [("experiments", "0011_refusals_by_sender")]

    operations = [
        migrations.AddField("exposurerow", "also_tenants", _names()),
        migrations.AddField(
            "rolloutexposure", "tenant", models.CharField(max_length=100, null=True)
        ),
        migrations.AddField("rolloutexposure", "also_tenants", _names()),
        migrations.AddField("shadowpairrow", "tenant", models.CharField(max_length=100, null=True)),
        migrations.AddField("outcomerow", "tenant", models.CharField(max_length=100, null=True)),
        migrations.AddField("outcomerow", "models_opened", _names()),
    ]
