"""The engines of `./run engines`, each with the three datasets of an export."""

from __future__ import annotations

import logging
from collections.abc import Callable
from importlib.util import find_spec
from typing import Any

import ibis

from apps.experiments.warehouse.export import Exported
from apps.experiments.warehouse.source import Warehouse
from apps.experiments.warehouse.units import Tables
from tests.experiments.warehouse.agreement import warehouse

Opened = Callable[[Exported], Warehouse]


def _spark(files: Exported) -> Warehouse:
    from pyspark.sql import SparkSession

    # Spark logs at exit, when stderr may be closed.
    logging.getLogger("py4j").setLevel(logging.WARNING)
    builder = SparkSession.builder.master("local[1]").config("spark.ui.enabled", "false")
    session = builder.config("spark.sql.session.timeZone", "UTC").getOrCreate()
    engine = ibis.pyspark.connect(session)
    return Warehouse(_read(engine, files), engine)


def _clickhouse(files: Exported) -> Warehouse:
    """Return ClickHouse in this process, with tables of typical column types."""
    import clickhouse_connect

    client = clickhouse_connect.get_client(interface="chdb")
    engine = ibis.clickhouse.from_connection(client)
    types = {
        "exposures": "experiment String, unit String, variant String, at DateTime64(6, 'UTC'),"
        " crossed_over Bool, bucket Int16, tenant String, `x-country` Nullable(String)",
        "outcomes": "event_id String, unit String, metric String, value Float64,"
        " occurred_at DateTime64(6, 'UTC')",
        "measured": "experiment String, unit String, requests Int64, errors Int64,"
        " cache_hits Int64, latency_us Int64",
    }
    for name, columns in types.items():
        client.command(f"DROP TABLE IF EXISTS {name}")
        client.command(f"CREATE TABLE {name} ({columns}) ENGINE = MergeTree ORDER BY unit")
        client.command(f"INSERT INTO {name} SELECT * FROM file('{getattr(files, name)}', Parquet)")
    return Warehouse(Tables(*(engine.table(name) for name in types)), engine)


def _read(engine: Any, files: Exported) -> Tables:
    names = ("exposures", "outcomes", "measured")
    return Tables(*(engine.read_parquet(str(getattr(files, name))) for name in names))


ENGINES: dict[str, tuple[str, Opened]] = {
    "ClickHouse": ("chdb", _clickhouse),
    "DuckDB": ("duckdb", warehouse),
    "Spark": ("pyspark", _spark),
}
AVAILABLE = [name for name, (module, _) in ENGINES.items() if find_spec(module)]
