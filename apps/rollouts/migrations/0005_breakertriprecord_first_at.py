from django.db import migrations, models
from django.db.models.functions import Now


class Migration(migrations.Migration):
    dependencies = [("rollouts", "0004_cache_hits_shadows_pins")]

    operations = [
        # Trips that are known already were first heard of at some time before this change.
        migrations.AddField(
            model_name="breakertriprecord",
            name="first_at",
            field=models.DateTimeField(db_default=Now()),
        ),
        migrations.AlterField(
            model_name="breakertriprecord",
            name="first_at",
            field=models.DateTimeField(),
        ),
    ]
