from django.db import migrations, models


class Migration(migrations.Migration):
    dependencies = [("registry", "0009_key_models")]

    operations = [
        migrations.AddField(
            model_name="modelversion",
            name="trial_ms",
            field=models.JSONField(blank=True, null=True),
        ),
    ]
