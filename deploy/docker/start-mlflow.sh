#!/bin/sh
# MLflow with logins: who may set an alias may start a rollout. Its accounts are in its database.
set -eu
umask 077
cat > /tmp/auth.ini <<CONFIG
[mlflow]
default_permission = READ
database_uri = $MLFLOW_BACKEND_STORE_URI
admin_username = interlock
authorization_function = mlflow.server.auth:authenticate_request_basic_auth
auth_cache_ttl_seconds = 60
CONFIG
export MLFLOW_AUTH_CONFIG_PATH=/tmp/auth.ini
exec mlflow server --app-name basic-auth --host 0.0.0.0 --port 5000 --workers 1 \
    --serve-artifacts --artifacts-destination /artifacts
