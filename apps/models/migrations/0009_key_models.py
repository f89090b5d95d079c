from django.db import migrations, models


class Migration(migrations.Migration):
    dependencies = [("registry", "0010_retirement")]

    operations = [
        migrations.AddField(
            model_name="apikey",
            name="opens",
            field=models.JSONField(blank=True, default=list),
        ),
    ]
