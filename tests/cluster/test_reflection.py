"""A generic client that has nothing of vectorfleet but reflection can use the whole contract."""

from __future__ import annotations

from typing import Any

import grpc
import pytest
from google.protobuf import descriptor_pool, message_factory
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase

from vectorfleet.local import LocalCluster

PUBLIC = {f"vectorfleet.v1.{name}" for name in ("CollectionService", "PointService", "SearchService", "ClusterService")}


class Generic:
    """Calls any method of any service, by name, with dictionaries."""

    def __init__(self, channel: grpc.Channel) -> None:
        self._channel = channel
        self._database = ProtoReflectionDescriptorDatabase(channel)
        # A pool of its own: nothing of the generated code is in it.
        self._pool = descriptor_pool.DescriptorPool(self._database)

    def services(self) -> set[str]:
        return set(self._database.get_services())

    def call(self, service: str, method: str, **fields: Any) -> Any:
        described = self._pool.FindServiceByName(f"vectorfleet.v1.{service}").methods_by_name[method]
        request = message_factory.GetMessageClass(described.input_type)(**fields)
        answer = message_factory.GetMessageClass(described.output_type)
        rpc = self._channel.unary_unary(
            f"/vectorfleet.v1.{service}/{method}",
            request_serializer=lambda message: message.SerializeToString(),
            response_deserializer=answer.FromString,
        )
        return rpc(request, timeout=30)


def test_reflection_alone_is_enough(cluster: LocalCluster, name: str) -> None:
    with grpc.insecure_channel(cluster.address) as channel:
        generic = Generic(channel)
        assert PUBLIC | {"grpc.health.v1.Health"} <= generic.services()
        made = generic.call("CollectionService", "CreateCollection", spec={"name": name, "dim": 2, "shards": 2})
        assert made.collection.spec.name == name
        points = [
            {"id": "near", "values": {"values": [1, 0]}, "payload": b'{"a": 1}'},
            {"id": "far", "values": {"values": [9, 9]}},
        ]
        assert generic.call("PointService", "Upsert", collection=name, points=points).upserted == 2
        queries = [{"values": {"values": [0, 0]}}]
        answer = generic.call("SearchService", "Search", collection=name, queries=queries, with_payload=True)
        (result,) = answer.results
        assert [(hit.id, hit.score, hit.payload) for hit in result.hits[:1]] == [("near", 1.0, b'{"a": 1}')]
        assert [hit.id for hit in result.hits] == ["near", "far"]
        assert (answer.coverage.shards_total, answer.coverage.shards_answered) == (2, 2)
        assert generic.call("PointService", "Count", collection=name).points == 2
        assert len(generic.call("ClusterService", "GetCluster").nodes) == 2


@pytest.mark.parametrize("process", ["router-0", "node-0", "node-1"])
def test_every_process_lists_its_services(cluster: LocalCluster, process: str) -> None:
    with grpc.insecure_channel(cluster.processes[process].address) as channel:
        services = Generic(channel).services()
    wanted = PUBLIC if process.startswith("router") else {"vectorfleet.internal.v1.ShardService"}
    assert wanted <= services
