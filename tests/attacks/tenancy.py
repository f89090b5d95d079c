"""Two tenants of one instance: `shop` with a key for all models and one for `sums`, and `rival`."""

from __future__ import annotations

import hashlib
from contextlib import asynccontextmanager

import grpc.aio
import httpx
from tritonclient.grpc import service_pb2

from contract.routing import Tenant
from dataplane.grpc_service import SERVICE
from tests.dataplane.groups import ROW, a_group, free_port
from tests.dataplane.worlds import body

KEYS = ("shop", "limited", "elsewhere", "rival")
INFER = "/v2/models/sums/infer"
PLAIN = {"model": "sums", "data": [ROW]}


def digest(key):
    return hashlib.sha256(key.encode()).hexdigest()


TENANCY = {
    "tenants": {
        "shop": Tenant(
            keys=(digest("shop"),),
            limited_keys={digest("limited"): ("sums",), digest("elsewhere"): ("other",)},
        ),
        "rival": Tenant(keys=(digest("rival"),)),
    },
    "key_required": True,
    "id_secret": "known to the fleet",
}


class Door:
    """An instance, as applications with these keys use it."""

    def __init__(self, group, grpc_port):
        self.group = group
        self._channel = grpc.aio.insecure_channel(f"127.0.0.1:{grpc_port}")

    async def get(self, path, **headers):
        return await self._ask("GET", path, headers=_names(headers))

    async def post(self, path, document, key=None):
        headers = {} if key is None else {"x-api-key": key}
        content = {"content": document} if type(document) is bytes else {"json": document}
        return await self._ask("POST", path, headers=headers, **content)

    async def request_id(self, key):
        """Return the id of a prediction of the key's tenant."""
        answer = await self.post(INFER, body(ROW), key)
        assert answer.status_code == 200, answer.text
        return answer.headers["x-interlock-request-id"]

    async def call(self, method, message, **metadata):
        """Return the status code of a gRPC call, such as `OK`."""
        call = self._channel.unary_unary(SERVICE + method)
        try:
            await call(message.SerializeToString(), metadata=tuple(_names(metadata).items()))
        except grpc.aio.AioRpcError as error:
            return error.code().name
        return "OK"

    async def close(self):
        await self._channel.close()

    async def _ask(self, method, path, **content):
        async with httpx.AsyncClient(base_url=self.group.url, timeout=20) as client:
            return await client.request(method, path, **content)


def _names(headers):
    return {name.replace("_", "-"): value for name, value in headers.items()}


def infer_message(rows=1):
    tensor = service_pb2.ModelInferRequest.InferInputTensor(
        name="x", datatype="FP32", shape=[rows, 4]
    )
    tensor.contents.fp32_contents.extend(ROW * rows)
    return service_pb2.ModelInferRequest(model_name="sums", inputs=[tensor])


@asynccontextmanager
async def a_door(valkey, folder, **settings):
    grpc_port = free_port()
    settings = {"INTERLOCK_GRPC_BIND": f"127.0.0.1:{grpc_port}", **settings}
    async with a_group(valkey, folder, workers=1, tenancy=TENANCY, **settings) as group:
        door = Door(group, grpc_port)
        try:
            yield door
        finally:
            await door.close()
