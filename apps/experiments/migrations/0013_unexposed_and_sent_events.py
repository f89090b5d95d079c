from django.db import migrations

# The key of results under which they keep the events that were sent.
RENAME = """
    UPDATE experiments_experiment SET result = (result - %(old)s)
        || jsonb_build_object(%(new)s::text, result -> %(old)s)
    WHERE result ? %(old)s
"""
OLD, NEW = "told", "sent_events"


def rename(apps, editor):
    with editor.connection.cursor() as cursor:
        cursor.execute(RENAME, {"old": OLD, "new": NEW})


def rename_back(apps, editor):
    with editor.connection.cursor() as cursor:
        cursor.execute(RENAME, {"old": NEW, "new": OLD})


class Migration(migrations.Migration):
    dependencies = [("experiments", "0012_senders")]

    operations = [
        migrations.RenameField("outcomeimport", "strangers", "unexposed"),
        migrations.RunPython(rename, rename_back),
    ]
