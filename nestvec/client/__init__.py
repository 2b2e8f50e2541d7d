"""Clients of a nestvec service: `Client` blocks, `AsyncClient` is for asyncio. Their verbs are the in-process ones."""

from nestvec.client.clients import AsyncClient, AsyncRemoteCollection, Client, RemoteCollection
from nestvec.client.service_verbs import ServiceInfo

__all__ = ["AsyncClient", "AsyncRemoteCollection", "Client", "RemoteCollection", "ServiceInfo"]
