from django.db import migrations, models

# As `apps.rollouts.reasons.headline_of`, but for the cut between words.
FILL = """
    UPDATE {table} SET headline = left(split_part(reason, '; ', 1), 90) WHERE reason <> ''
"""


def _headline():
    return models.CharField(max_length=90, blank=True, db_default="")


class Migration(migrations.Migration):
    dependencies = [("rollouts", "0018_alarm_reason")]

    operations = [
        migrations.AddField("rollout", "headline", _headline()),
        migrations.AddField("rolloutevent", "headline", _headline()),
        *(
            migrations.RunSQL(FILL.format(table=table), migrations.RunSQL.noop)
            for table in ("rollouts_rollout", "rollouts_rolloutevent")
        ),
    ]
