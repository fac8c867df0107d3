"""Old address of `RemoteBackend` and `AsyncRemoteBackend`."""

from nnsight.remote.client import AsyncRemoteBackend, RemoteBackend
from nnsight.remote.errors import RemoteError

RemoteException = RemoteError

__all__ = ["AsyncRemoteBackend", "RemoteBackend", "RemoteError", "RemoteException"]
