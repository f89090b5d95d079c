from django.db import migrations


class Migration(migrations.Migration):
    dependencies = [("rollouts", "0017_partitions")]

    operations = [migrations.RenameField("trafficalarm", "told", "reason")]
