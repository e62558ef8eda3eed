"""The files of [security] that make the public ports speak TLS, looked at before anything is bound.

Knows nothing of transports: each makes of them what its library wants. What is wrong with them is one line that names
the setting and the file.
"""

from __future__ import annotations

import ssl
from dataclasses import dataclass
from pathlib import Path

from trimtab.server.errors import StartError
from trimtab.store.settings import SecuritySettings

__all__ = ["TlsFiles"]


@dataclass(frozen=True)
class TlsFiles:
    """PEM files. With a `client_ca`, every client must show a certificate that it signed."""

    certificate: Path
    key: Path
    client_ca: Path | None = None

    @classmethod
    def of(cls, security: SecuritySettings, root: Path) -> TlsFiles | None:
        """Those of a project in the folder `root`; None where it has none. Raises StartError."""
        if not security.tls_certificate:
            return None
        client_ca = root / security.tls_client_ca if security.tls_client_ca else None
        files = cls(root / security.tls_certificate, root / security.tls_key, client_ca)
        files.check()
        return files

    def check(self) -> None:
        """Raises StartError where the files cannot be read, are not what they should be, or do not fit together."""
        for name, path in (("certificate", self.certificate), ("key", self.key), ("client_ca", self.client_ca)):
            if path is not None:
                _read(f"tls_{name}", path)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        try:
            # A password: keys that want one are refused, where OpenSSL would ask the terminal.
            context.load_cert_chain(self.certificate, self.key, password="")
        except (ssl.SSLError, ValueError) as error:
            raise StartError(self._mismatch(error)) from None
        if self.client_ca is not None:
            try:
                context.load_verify_locations(self.client_ca)
            except ssl.SSLError:
                raise StartError(f"[security] tls_client_ca: {self.client_ca} holds no PEM certificate") from None

    def read(self) -> tuple[bytes, bytes, bytes | None]:
        """What is in the files: certificate, key, client CA. Raises StartError."""
        client_ca = _read("tls_client_ca", self.client_ca) if self.client_ca is not None else None
        return _read("tls_certificate", self.certificate), _read("tls_key", self.key), client_ca

    def _mismatch(self, error: Exception) -> str:
        if isinstance(error, ssl.SSLError) and error.reason == "KEY_VALUES_MISMATCH":
            return f"[security] tls_key: {self.key} is not the key of {self.certificate}"
        if b"-----BEGIN CERTIFICATE-----" not in self.certificate.read_bytes():
            return f"[security] tls_certificate: {self.certificate} holds no PEM certificate"
        key = self.key.read_bytes()
        if b"ENCRYPTED" in key:
            return f"[security] tls_key: {self.key} has a password; expected a key without one"
        if b"PRIVATE KEY-----" not in key:
            return f"[security] tls_key: {self.key} holds no PEM private key"
        return f"[security] tls_certificate, tls_key: {self.certificate} and {self.key} cannot be used: {error}"


def _read(setting: str, path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise StartError(f"[security] {setting}: cannot read {path}: {reason}") from None
