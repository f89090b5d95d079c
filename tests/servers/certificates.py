"""Certificates of test authorities, for servers with TLS."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID


@dataclass(frozen=True)
class Files:
    """The files of a server, and the certificate of the authority that its clients trust."""

    certificate: Path
    key: Path
    authority: Path


def make_files(directory: Path, name: str, host: str = "localhost") -> Files:
    """Create an authority and a certificate for a server at `host`, a name or an address."""
    ca_key, ca_name = ec.generate_private_key(ec.SECP256R1()), _named(f"{name} authority")
    ca = _signed(ca_name, ca_name, ca_key.public_key(), ca_key, is_authority=True)
    key = ec.generate_private_key(ec.SECP256R1())
    leaf = _signed(_named(host), ca_name, key.public_key(), ca_key, host=host)
    files = Files(*(directory / f"{name}.{each}" for each in ("crt", "key", "ca")))
    files.certificate.write_bytes(leaf.public_bytes(serialization.Encoding.PEM))
    files.authority.write_bytes(ca.public_bytes(serialization.Encoding.PEM))
    files.key.touch(mode=0o600)
    files.key.write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
    )
    return files


def _named(name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])


def _signed(
    subject: x509.Name,
    issuer: x509.Name,
    key: ec.EllipticCurvePublicKey,
    by: ec.EllipticCurvePrivateKey,
    *,
    host: str = "",
    is_authority: bool = False,
) -> x509.Certificate:
    now = datetime.now(UTC)
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.BasicConstraints(ca=is_authority, path_length=None), critical=True)
    )
    if host:
        builder = builder.add_extension(
            x509.SubjectAlternativeName([_general_name(host)]), critical=False
        )
    return builder.sign(by, hashes.SHA256())


def _general_name(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        return x509.DNSName(host)
