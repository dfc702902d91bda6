"""Makes the fixtures known to this folder's tests."""

from tests.unit.client.fixtures import client, fake

__all__ = ["client", "fake"]
