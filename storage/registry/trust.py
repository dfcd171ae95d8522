"""Trust: by what we believe a registry, what we show of ourselves, and what a failure means."""

import ssl
from collections.abc import Iterator, Mapping

from ...actors.errors import InvalidArgument
from .hosts import Host

_OWN_CA = (
    "name the certificate of who signed it, as `ca` in the host's hosts.toml"
    " or as a *.crt file in its folder"
)
# What OpenSSL says of a certificate (X509_V_ERR_*), and what to do.
_VERIFY: Mapping[int, tuple[str, str]] = {
    9: ("is not valid yet", "look at the clocks of both machines"),
    10: ("has expired", "it needs a new one, or this machine's clock is wrong"),
    18: ("is signed by itself alone", _OWN_CA),
    19: ("is signed by an authority that is not trusted here", _OWN_CA),
    20: ("is signed by an authority that is not trusted here", _OWN_CA),
    21: ("is signed by an authority that is not trusted here", _OWN_CA),
    23: ("was revoked", "it needs a new one"),
    62: ("is for other names", "use a name that the certificate has"),
    64: ("is for other addresses", "use a name that the certificate has"),
}
# Words in OpenSSL's reasons.
_REASONS: Mapping[str, tuple[str, str]] = {
    "WRONG_VERSION_NUMBER": (
        "does not speak TLS there",
        "where it speaks plain http, name it as http:// in hosts.toml",
    ),
    "HTTP_REQUEST": (
        "does not speak TLS there",
        "where it speaks plain http, name it as http:// in hosts.toml",
    ),
    "CERTIFICATE_REQUIRED": (
        "wants to see a certificate of ours",
        "name one as `client` in the host's hosts.toml, or as *.cert and *.key files in its folder",
    ),
    "BAD_CERTIFICATE": (
        "misses a certificate of ours, or does not accept the one it was shown",
        "see `client` in the host's hosts.toml, or *.cert and *.key files in its folder",
    ),
    "UNKNOWN_CA": (
        "does not know who signed our certificate",
        "see `client` in the host's hosts.toml",
    ),
    "HANDSHAKE_FAILURE": (
        "found nothing that both sides can speak, or misses a certificate of ours",
        "see `client` in the host's hosts.toml",
    ),
    "PROTOCOL_VERSION": ("speaks only versions of TLS that are broken", "it must be updated"),
    "UNSUPPORTED_PROTOCOL": ("speaks only versions of TLS that are broken", "it must be updated"),
}


def context_of(host: Host, *, own: bool) -> ssl.SSLContext:
    """Whom we trust for a host; `own`: with what we show of ourselves. Reads files; blocks."""
    if own and host.origin[0] == "http":
        # It is not spoken to by TLS: reading all that the system trusts takes its time.
        return ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context = ssl.create_default_context()
    for path in host.authorities:
        try:
            context.load_verify_locations(path)
        except (OSError, ssl.SSLError) as error:
            raise InvalidArgument(f"certificate authority {path}: {error}") from error
    for certificate, key in host.certificates if own else ():
        try:
            # A key with a passphrase would be asked for on the terminal.
            context.load_cert_chain(certificate, key, password=_no_passphrase)
        except (OSError, ssl.SSLError, ValueError) as error:
            files = f"{certificate} with {key}" if key else f"{certificate}, which holds no other"
            raise InvalidArgument(f"client certificate {files}: {error}") from error
    if host.skip_verify:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    return context


def fault_of_tls(error: BaseException, authority: str) -> str:
    """What went wrong between us and a server's TLS, and what to do; empty if that did not."""
    for cause in causes(error):
        if isinstance(cause, ssl.SSLCertVerificationError):
            fault, advice = _VERIFY.get(cause.verify_code, ("is not accepted", _OWN_CA))
            return (
                f"the certificate of {authority} {fault} (CERTIFICATE_VERIFY_FAILED:"
                f" {cause.verify_message}): {advice}"
            )
        if isinstance(cause, ssl.SSLError):
            reason = cause.reason or str(cause)
            for word, (fault, advice) in _REASONS.items():
                if word in reason:
                    return f"{authority} {fault} ({reason}): {advice}"
            if not isinstance(cause, ssl.SSLEOFError):
                return f"TLS with {authority}: {reason}"
    return ""


def causes(error: BaseException) -> Iterator[BaseException]:
    """An error and what led to it, the latest first."""
    seen: set[int] = set()
    cause: BaseException | None = error
    while cause is not None and id(cause) not in seen:
        seen.add(id(cause))
        yield cause
        cause = cause.__cause__ or cause.__context__


def _no_passphrase() -> str:
    raise ValueError("its key has a passphrase, which nobody is there to type")
