"""Counts refused outcomes by where they came from; what was counted before came from nowhere."""

from django.db import migrations, models


class Migration(migrations.Migration):
    dependencies = [("experiments", "0010_shadow_pairs")]

    operations = [
        migrations.AddField(
            model_name="refusedoutcomes",
            name="sender",
            field=models.CharField(db_default="", default="", max_length=150),
        ),
        migrations.AddField(
            model_name="refusedoutcomes",
            name="via",
            field=models.CharField(db_default="", default="", max_length=200),
        ),
        migrations.RemoveConstraint(
            model_name="refusedoutcomes",
            name="refused_outcomes_once",
        ),
        migrations.AddConstraint(
            model_name="refusedoutcomes",
            constraint=models.UniqueConstraint(
                fields=("metric_name", "reason", "sender", "via"), name="refused_outcomes_once"
            ),
        ),
    ]
