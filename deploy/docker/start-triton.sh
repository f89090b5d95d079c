#!/bin/sh
# Triton whose control APIs (they change what is served, reach into memory or write files) ask for
# the control plane's token. It takes the token as an option alone.
set -eu
restricted=model-repository,shared-memory,trace,logging:interlock-control=${INTERLOCK_TRITON_TOKEN:?}
exec tritonserver --model-repository=/data/repository --model-control-mode=explicit \
    '--load-model=*' --exit-on-error=false --strict-readiness=false \
    --backend-config=python,stub-timeout-seconds=600 \
    --disable-auto-complete-config --exit-timeout-secs=30 \
    "--http-restricted-api=$restricted" "--grpc-restricted-protocol=$restricted"
