"""The certificate that the gateway shows to clients."""

import ssl

from config.problems import ConfigError, Problem
from config.settings import Tls


def read_certificate(tls: Tls, context: ssl.SSLContext) -> None:
    """Have new connections of `context` show the certificate as its files are now.

    Raises:
        ConfigError: If the files cannot be read or do not fit together; the one before stays.
    """
    # OpenSSL names neither the file nor the reason when one is not there.
    for key, file in (("certificate", tls.certificate), ("key", tls.key)):
        try:
            file.read_bytes()
        except OSError as error:
            what = f"{file} cannot be read: {error.strerror}"
            raise ConfigError([_problem(key, what)]) from None
    try:
        # A pair that does not fit takes a context's key away, so another is asked first.
        for each in (ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), context):
            each.load_cert_chain(tls.certificate, tls.key, password="")
    except (ssl.SSLError, ValueError) as error:
        what = f"{tls.certificate} and {tls.key} cannot be used: {_reason(error)}"
        fix = "both are PEM files, and the key is the certificate's own, without a passphrase"
        raise ConfigError([_problem("certificate", what, fix)]) from None


def server_context(tls: Tls) -> ssl.SSLContext:
    """Return what connections of clients are encrypted with, TLS 1.2 at least.

    Raises:
        ConfigError: If a file cannot be used.
    """
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    read_certificate(tls, context)
    if tls.client_ca is not None:
        try:
            context.load_verify_locations(tls.client_ca)
        except OSError as error:  # which an SSLError is
            what = f"{tls.client_ca} cannot be used: {_reason(error)}"
            raise ConfigError([_problem("client_ca", what)]) from None
        context.verify_mode = ssl.CERT_REQUIRED
    return context


def _reason(error: OSError | ValueError) -> str:
    return str(getattr(error, "reason", None) or getattr(error, "strerror", None) or error)


def _problem(key: str, what: str, fix: str = "") -> Problem:
    return Problem(where="config", key=f"listen.tls.{key}", what=what, fix=fix)
