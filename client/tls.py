"""How a client speaks TLS: whom it trusts, and who it says it is."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import grpc
from trimtab.client.errors import InvalidInput

__all__ = ["Tls"]


@dataclass(frozen=True)
class Tls:
    """Paths of PEM files. `root`: whose certificates servers must have; None: those that the system trusts.
    `certificate` and `key`: the client's own, where the server asks for one."""

    root: str | os.PathLike[str] | None = None
    certificate: str | os.PathLike[str] | None = None
    key: str | os.PathLike[str] | None = None

    def credentials(self) -> grpc.ChannelCredentials:
        """As gRPC takes them. Raises InvalidInput."""
        if (self.certificate is None) != (self.key is None):
            raise InvalidInput("a client's certificate and its key belong together; give both, or none")
        return grpc.ssl_channel_credentials(_read(self.root), _read(self.key), _read(self.certificate))


def _read(path: str | os.PathLike[str] | None) -> bytes | None:
    if path is None:
        return None
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise InvalidInput(f"cannot read {os.fspath(path)}: {(error.strerror or str(error)).lower()}") from None
