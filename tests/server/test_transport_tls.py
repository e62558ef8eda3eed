"""TLS and mTLS: the same on every transport, with real handshakes by gRPC's client and by OpenSSL's."""

from __future__ import annotations

import ast
import asyncio
import os
import socket
import ssl
import urllib.request
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest
from trimtab.client import Client, ClientError
from trimtab.client.tls import Tls
from trimtab.server.errors import StartError
from trimtab.server.tls import TlsFiles
from trimtab.store.project import Project
from trimtab.store.settings import SecuritySettings

from .certificates import Authority
from .transports import TRANSPORTS, Bench, open_bench, status_of
from .world import serving

_LOCAL = [("grpc.use_local_subchannel_pool", 1)]


class Secure:
    """A bench whose port speaks TLS, and those who may come."""

    def __init__(self, bench: Bench, authority: Authority, files: TlsFiles) -> None:
        self.bench, self.authority, self.files = bench, authority, files

    def channel(self, certificate: tuple[Path, Path] | None = None) -> grpc.aio.Channel:
        pair = certificate or (None, None)
        credentials = Tls(self.authority.path, *pair).credentials()
        return grpc.aio.secure_channel(self.bench.port, credentials, options=_LOCAL)

    def handshake(self, alpn: list[str], change: Any = lambda context: None) -> str | None:
        """The version of a handshake by OpenSSL's own client."""
        context = ssl.create_default_context(cafile=os.fspath(self.authority.path))
        context.check_hostname = False
        if alpn:
            context.set_alpn_protocols(alpn)
        change(context)
        with (
            socket.create_connection(self.bench.address, timeout=10) as raw,
            context.wrap_socket(raw) as wrapped,
        ):
            # TLS 1.3 clients are done before the server is: its first bytes, or its alert, decide.
            if not wrapped.recv(1):
                raise ssl.SSLEOFError
            return wrapped.version()


async def _open(name: str, folder: Path, client_ca: bool) -> AsyncIterator[Secure]:
    authority = Authority(folder)
    certificate, key = authority.issue("server", addresses=("127.0.0.1",), names=("localhost",))
    files = TlsFiles(certificate, key, authority.path if client_ca else None)
    files.check()
    async with open_bench(name, folder, tls=files) as bench:
        yield Secure(bench, authority, files)


@pytest.fixture(params=sorted(TRANSPORTS))
async def tls(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Secure]:
    async for each in _open(request.param, tmp_path, client_ca=False):
        yield each


@pytest.fixture(params=sorted(TRANSPORTS))
async def mtls(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Secure]:
    async for each in _open(request.param, tmp_path, client_ca=True):
        yield each


# --- TLS


async def test_calls_and_streams_over_tls(tls: Secure) -> None:
    async with tls.channel() as channel:
        body = bytes(range(256)) * 300
        assert await channel.unary_unary("/test.Echo/Raw")(body) == body[::-1]
        call = channel.stream_stream("/test.Echo/Converse")()
        for number in range(5):
            await call.write(body[number:])
            assert await call.read() == body[number:]
        await call.done_writing()
        assert await call.read() is grpc.aio.EOF


async def test_large_answers_over_tls_to_a_slow_reader(tls: Secure) -> None:
    async with tls.channel() as channel:
        call = channel.unary_stream("/test.Echo/Pour")(b"300 90000")
        for number in range(300):
            assert int.from_bytes((await call.read())[:8], "big") == number
        assert await call.read() is grpc.aio.EOF


async def test_many_calls_over_tls(tls: Secure) -> None:
    async def client(number: int) -> None:
        async with tls.channel() as channel:
            echo = channel.unary_unary("/test.Echo/Raw")
            bodies = [f"{number} {step}".encode() * 300 for step in range(20)]
            assert await asyncio.gather(*[echo(body) for body in bodies]) == [body[::-1] for body in bodies]

    await asyncio.gather(*[client(number) for number in range(8)])


async def test_identity_without_a_client_certificate(tls: Secure) -> None:
    async with tls.channel() as channel:
        identity = ast.literal_eval((await channel.unary_unary("/test.Echo/Identity")(b"")).decode())
    assert identity["transport_security_type"] == [b"ssl"]
    assert not [name for name in identity if name.startswith("x509")]


async def test_plaintext_client_is_turned_away_and_others_are_served(tls: Secure) -> None:
    async with grpc.aio.insecure_channel(tls.bench.port, options=_LOCAL) as plain:
        error = await status_of(plain.unary_unary("/test.Echo/Raw")(b"", timeout=20))
    assert error.code() is grpc.StatusCode.UNAVAILABLE
    async with tls.channel() as channel:
        assert await channel.unary_unary("/test.Echo/Raw")(b"ab") == b"ba"


async def test_admin_socket_stays_plain(tls: Secure) -> None:
    async with grpc.aio.insecure_channel(f"unix:{tls.bench.path}") as channel:
        assert await channel.unary_unary("/test.Echo/Raw")(b"ab") == b"ba"


@pytest.mark.parametrize("version", ["TLSv1_2", "TLSv1_3"])
async def test_versions_that_are_spoken(tls: Secure, version: str) -> None:
    def only(context: ssl.SSLContext) -> None:
        context.minimum_version = context.maximum_version = ssl.TLSVersion[version]

    assert await asyncio.to_thread(tls.handshake, ["h2"], only) == version.replace("_", ".")


async def test_old_version_is_refused(tls: Secure) -> None:
    def only(context: ssl.SSLContext) -> None:
        context.set_ciphers("ALL:@SECLEVEL=0")
        context.minimum_version = ssl.TLSVersion.MINIMUM_SUPPORTED
        context.maximum_version = ssl.TLSVersion.TLSv1_1

    with pytest.warns(DeprecationWarning, match="TLS"), pytest.raises((ssl.SSLError, ConnectionError)):
        await asyncio.to_thread(tls.handshake, ["h2"], only)


async def test_cipher_without_forward_secrecy_is_refused(tls: Secure) -> None:
    def only(context: ssl.SSLContext) -> None:
        context.maximum_version = ssl.TLSVersion.TLSv1_2
        context.set_ciphers("AES128-SHA:AES256-GCM-SHA384")

    with pytest.raises((ssl.SSLError, ConnectionError)):
        await asyncio.to_thread(tls.handshake, ["h2"], only)


@pytest.mark.parametrize("alpn", [["http/1.1"], []], ids=["http1", "none"])
async def test_client_that_does_not_offer_http2_is_refused(tls: Secure, alpn: list[str]) -> None:
    if tls.bench.transport.name == "grpcio" and not alpn:
        pytest.skip("grpcio takes clients without ALPN for HTTP/2 ones")
    with pytest.raises((ssl.SSLError, ConnectionError)):
        await asyncio.to_thread(tls.handshake, alpn)


async def test_changed_certificate_is_used_for_new_connections(tls: Secure) -> None:
    async with tls.channel() as before:
        assert await before.unary_unary("/test.Echo/Raw")(b"ab") == b"ba"
        serial = _serial(tls)
        tls.authority.issue("server", addresses=("127.0.0.1",))  # the same paths, another key
        await _until(lambda: _serial(tls) != serial)
        assert await before.unary_unary("/test.Echo/Raw")(b"ab") == b"ba"
    async with tls.channel() as channel:
        assert await channel.unary_unary("/test.Echo/Raw")(b"ab") == b"ba"


async def test_certificate_without_its_key_leaves_the_last_one_in_use(tls: Secure, tmp_path: Path) -> None:
    serial = _serial(tls)
    key = tls.files.key.read_bytes()
    tls.authority.issue("server", addresses=("127.0.0.1",))
    fitting = tls.files.key.read_bytes()
    tls.files.key.write_bytes(key)
    for _ in range(3):
        assert _serial(tls) == serial
        await asyncio.sleep(0.5)
    tls.files.key.write_bytes(fitting)
    await _until(lambda: _serial(tls) != serial)


# --- mTLS


async def test_client_certificate_becomes_the_identity(mtls: Secure) -> None:
    pair = mtls.authority.issue("alice", names=("alice.example",), addresses=("10.0.0.1",))
    async with mtls.channel(pair) as channel:
        identity = ast.literal_eval((await channel.unary_unary("/test.Echo/Identity")(b"")).decode())
    assert identity["transport_security_type"] == [b"ssl"]
    assert identity["x509_common_name"] == [b"alice"]
    assert identity["x509_subject_alternative_name"] == [b"alice.example", b"10.0.0.1"]
    assert identity["x509_pem_cert"][0].split() == pair[0].read_bytes().split()


async def test_client_without_a_certificate_is_refused(mtls: Secure) -> None:
    async with mtls.channel() as channel:
        error = await status_of(channel.unary_unary("/test.Echo/Raw")(b"", timeout=20))
    assert error.code() is grpc.StatusCode.UNAVAILABLE


async def test_certificate_of_another_authority_is_refused(mtls: Secure, tmp_path: Path) -> None:
    mallory = Authority(tmp_path, "other").issue("mallory")
    async with mtls.channel(mallory) as channel:
        error = await status_of(channel.unary_unary("/test.Echo/Raw")(b"", timeout=20))
    assert error.code() is grpc.StatusCode.UNAVAILABLE
    async with mtls.channel(mtls.authority.issue("alice")) as channel:
        assert await channel.unary_unary("/test.Echo/Raw")(b"ab") == b"ba"


# --- the files


@pytest.fixture
def issued(tmp_path: Path) -> tuple[Path, Path, Path]:
    authority = Authority(tmp_path)
    return *authority.issue("server"), authority.path


def _of(tmp_path: Path, **settings: str) -> TlsFiles | None:
    return TlsFiles.of(SecuritySettings(**settings), tmp_path)


def test_files_are_relative_to_the_project(tmp_path: Path, issued: tuple[Path, Path, Path]) -> None:
    files = _of(tmp_path, tls_certificate="server.pem", tls_key="server.key", tls_client_ca="ca.pem")
    assert files == TlsFiles(*issued)
    assert _of(tmp_path) is None


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"tls_certificate": "gone.pem", "tls_key": "server.key"}, "tls_certificate: cannot read .*gone.pem: no such"),
        ({"tls_certificate": "server.pem", "tls_key": "."}, "tls_key: cannot read .*: is a directory"),
        ({"tls_certificate": "server.pem", "tls_key": "other.key"}, "tls_key: .*other.key is not the key of .*server"),
        ({"tls_certificate": "server.key", "tls_key": "server.key"}, "tls_certificate: .* holds no PEM certificate"),
        ({"tls_certificate": "server.pem", "tls_key": "server.pem"}, "tls_key: .* holds no PEM private key"),
        ({"tls_certificate": "server.pem", "tls_key": "locked.key"}, "tls_key: .*locked.key has a password"),
        ({"tls_certificate": "server.pem", "tls_key": "server.key", "tls_client_ca": "server.key"}, "tls_client_ca: "),
    ],
    ids=["missing", "folder", "mismatch", "no certificate", "no key", "password", "no ca"],
)
def test_what_is_wrong_with_the_files_is_one_line(
    tmp_path: Path, issued: tuple[Path, Path, Path], settings: dict[str, str], said: str
) -> None:
    Authority(tmp_path, "another").issue("other")
    _lock(issued[1], tmp_path / "locked.key")
    with pytest.raises(StartError, match=said) as caught:
        _of(tmp_path, **settings)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "settings",
    [{"tls_certificate": "a"}, {"tls_key": "a"}, {"tls_client_ca": "a"}],
    ids=["certificate alone", "key alone", "ca alone"],
)
def test_settings_that_need_others(settings: dict[str, str]) -> None:
    with pytest.raises(ValueError, match="tls_certificate"):
        SecuritySettings(**settings)


def _lock(key: Path, path: Path) -> None:
    from cryptography.hazmat.primitives import serialization

    loaded = serialization.load_pem_private_key(key.read_bytes(), None)
    locked = serialization.BestAvailableEncryption(b"secret")
    path.write_bytes(loaded.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, locked))


def _serial(tls: Secure) -> str:
    """The certificate that a new connection gets."""
    return ssl.get_server_certificate(tls.bench.address, timeout=10)


async def _until(condition: Any) -> None:
    async with asyncio.timeout(30):
        while not await asyncio.to_thread(condition):  # noqa: ASYNC110 - nobody tells when a file is read again
            await asyncio.sleep(0.1)


# --- the whole server


def test_server_and_its_http_port_speak_tls(project: Project) -> None:
    authority = Authority(project.directory)
    authority.issue("server", addresses=("127.0.0.1",))
    file = project.directory / "trimtab.toml"
    file.write_text(file.read_text() + '\n[security]\ntls_certificate = "server.pem"\ntls_key = "server.key"\n')
    with serving(Project.load(project.directory)) as running:
        with Client(running.grpc, tls=Tls(authority.path)) as client:
            assert client.ready()
        with Client(running.grpc, retries=0, timeout=5) as plain, pytest.raises(ClientError):
            plain.inputs()
        trust = ssl.create_default_context(cafile=os.fspath(authority.path))
        with urllib.request.urlopen(f"https://{running.http}/livez", context=trust, timeout=10) as answer:
            assert answer.read() == b"live\n"
