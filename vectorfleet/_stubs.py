"""The stubs of the blocking client, on one channel."""

from __future__ import annotations

import grpc

from vectorfleet.v1.cluster_service_pb2_grpc import ClusterServiceStub
from vectorfleet.v1.collection_service_pb2_grpc import CollectionServiceStub
from vectorfleet.v1.key_service_pb2_grpc import KeyServiceStub
from vectorfleet.v1.point_service_pb2_grpc import PointServiceStub
from vectorfleet.v1.search_service_pb2_grpc import SearchServiceStub


class Stubs:
    """One for each service of the public contract."""

    def __init__(self, channel: grpc.Channel) -> None:
        self.channel = channel
        self.collections = CollectionServiceStub(channel)
        self.points = PointServiceStub(channel)
        self.search = SearchServiceStub(channel)
        self.cluster = ClusterServiceStub(channel)
        self.keys = KeyServiceStub(channel)
