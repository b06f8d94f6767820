"""Programs that stand in on emulated machines for Google's own, which the emulated cloud cannot download."""

import pathlib

# Served as cloud-sql-proxy/v2.25.2/cloud-sql-proxy.linux.{amd64,arm64} of the bucket cloud-sql-connectors.
CLOUD_SQL_PROXY = pathlib.Path(__file__).with_name("cloud_sql_proxy.py")
