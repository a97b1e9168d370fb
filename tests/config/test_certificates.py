"""The certificate that clients are shown, and files that cannot be one."""

import ssl
from contextlib import suppress
from pathlib import Path

import pytest
import trustme

from config.certificates import read_certificate, server_context
from config.problems import ConfigError
from config.settings import Tls


@pytest.fixture
def files(tmp_path: Path) -> Tls:
    leaf = trustme.CA().issue_cert("localhost")
    certificate, key = tmp_path / "tls.crt", tmp_path / "tls.key"
    leaf.cert_chain_pems[0].write_to_path(certificate)
    leaf.private_key_pem.write_to_path(key)
    return Tls(certificate=certificate, key=key)


def problem(tls: Tls) -> str:
    with pytest.raises(ConfigError) as raised:
        server_context(tls)
    (found,) = raised.value.problems
    return str(found)


def test_a_certificate_with_its_key_is_served_to_clients_that_need_none(files: Tls) -> None:
    context = server_context(files)

    assert context.verify_mode is ssl.CERT_NONE
    assert context.minimum_version >= ssl.TLSVersion.TLSv1_2


def test_clients_are_asked_for_a_certificate_of_the_authority(files: Tls) -> None:
    context = server_context(files.model_copy(update={"client_ca": files.certificate}))

    assert context.verify_mode is ssl.CERT_REQUIRED


def test_a_file_that_is_not_there_is_named(files: Tls, tmp_path: Path) -> None:
    gone = tmp_path / "gone.pem"

    for name in ("certificate", "key", "client_ca"):
        told = problem(files.model_copy(update={name: gone}))
        assert f"listen.tls.{name}: {gone} cannot be" in told
        assert "No such file" in told


def test_files_that_do_not_fit_together_are_named(files: Tls, tmp_path: Path) -> None:
    other = tmp_path / "other.key"
    trustme.CA().issue_cert("localhost").private_key_pem.write_to_path(other)

    told = problem(files.model_copy(update={"key": other}))

    assert f"{files.certificate} and {other} cannot be used" in told
    assert "the key is the certificate's own" in told


def test_a_pair_that_does_not_fit_leaves_the_one_before_in_use(files: Tls) -> None:
    authority = trustme.CA()
    one, other = (authority.issue_cert("localhost") for _ in range(2))
    one.cert_chain_pems[0].write_to_path(files.certificate)
    one.private_key_pem.write_to_path(files.key)
    context = server_context(files)
    other.cert_chain_pems[0].write_to_path(files.certificate)

    with pytest.raises(ConfigError):
        read_certificate(files, context)

    assert shown(context, authority) == ssl.PEM_cert_to_DER_cert(
        one.cert_chain_pems[0].bytes().decode()
    )


def shown(context: ssl.SSLContext, authority: trustme.CA) -> bytes | None:
    """Return the certificate that a client is shown, DER."""
    trusting = ssl.create_default_context()
    authority.configure_trust(trusting)
    up, down = ssl.MemoryBIO(), ssl.MemoryBIO()
    client = trusting.wrap_bio(down, up, server_hostname="localhost")
    server = context.wrap_bio(up, down, server_side=True)
    for side in (client, server, client):
        with suppress(ssl.SSLWantReadError):
            side.do_handshake()
    return client.getpeercert(binary_form=True)


def test_a_file_that_is_no_certificate_is_named(files: Tls, tmp_path: Path) -> None:
    other = tmp_path / "words.pem"
    other.write_text("not a certificate")

    for name in ("certificate", "client_ca"):
        assert str(other) in problem(files.model_copy(update={name: other}))
