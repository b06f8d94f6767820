"""Certificates: the emulator's own authority, Cloud SQL's authorities, and the keys of service accounts."""

import datetime
import hashlib
import ipaddress

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

_TEN_YEARS = datetime.timedelta(days=3650)


def new_key() -> ec.EllipticCurvePrivateKey:
    """Return a new P-256 key."""
    return ec.generate_private_key(ec.SECP256R1())


def key_pem(key: ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey) -> str:
    """Return a private key as unencrypted PKCS#8 PEM."""
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    ).decode()


def key_id(key: ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey) -> str:
    """Return the `kid` by which a public key is found; another key has another."""
    public = key.public_key().public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
    return hashlib.sha256(public).hexdigest()[:40]


def make_authority(common_name: str) -> tuple[str, str]:
    """Return certificate and key, both PEM, of a new certificate authority valid for ten years."""
    key = new_key()
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name)])
    certificate = (
        _builder(name, name, key.public_key(), _TEN_YEARS)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(
            x509.KeyUsage(
                digital_signature=True,
                key_cert_sign=True,
                crl_sign=True,
                content_commitment=False,
                key_encipherment=False,
                data_encipherment=False,
                key_agreement=False,
                encipher_only=False,
                decipher_only=False,
            ),
            critical=True,
        )
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .sign(key, hashes.SHA256())
    )
    return certificate.public_bytes(serialization.Encoding.PEM).decode(), key_pem(key)


def issue_server(authority_pem: str, authority_key_pem: str, common_name: str, names: list[str]) -> tuple[str, str]:
    """Return certificate and key, both PEM, of a TLS server that answers to DNS names and IP addresses."""
    key = new_key()
    alternatives = [x509.IPAddress(ipaddress.ip_address(n)) if _is_address(n) else x509.DNSName(n) for n in names]
    certificate = _issue(
        authority_pem,
        authority_key_pem,
        common_name,
        key.public_key(),
        _TEN_YEARS,
        [x509.SubjectAlternativeName(alternatives), x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH])],
    )
    return certificate, key_pem(key)


def issue_client(
    authority_pem: str, authority_key_pem: str, common_name: str, public_key_pem: str, lifetime: datetime.timedelta
) -> str:
    """Return the PEM certificate of a TLS client for its own public key; raises `ValueError` for a bad key."""
    public_key = serialization.load_pem_public_key(public_key_pem.encode())
    if not isinstance(public_key, rsa.RSAPublicKey | ec.EllipticCurvePublicKey):
        raise ValueError("the key is neither RSA nor elliptic")
    usage = x509.ExtendedKeyUsage([ExtendedKeyUsageOID.CLIENT_AUTH])
    return _issue(authority_pem, authority_key_pem, common_name, public_key, lifetime, [usage])


def self_signed(key: rsa.RSAPrivateKey, common_name: str) -> str:
    """Return a PEM certificate that carries a service account's public key."""
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name[:64])])
    certificate = _builder(name, name, key.public_key(), _TEN_YEARS).sign(key, hashes.SHA256())
    return certificate.public_bytes(serialization.Encoding.PEM).decode()


def _issue(
    authority_pem: str,
    authority_key_pem: str,
    common_name: str,
    public_key: rsa.RSAPublicKey | ec.EllipticCurvePublicKey,
    lifetime: datetime.timedelta,
    extensions: list[x509.ExtensionType],
) -> str:
    authority = x509.load_pem_x509_certificate(authority_pem.encode())
    signer = serialization.load_pem_private_key(authority_key_pem.encode(), None)
    if not isinstance(signer, ec.EllipticCurvePrivateKey):
        raise TypeError("authorities here have elliptic keys")
    # X.509 limits a common name to 64 characters, which e-mail addresses of service accounts may pass.
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name, _validate=len(common_name) <= 64)])
    builder = _builder(name, authority.subject, public_key, lifetime)
    builder = builder.add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
    builder = builder.add_extension(
        x509.AuthorityKeyIdentifier.from_issuer_public_key(signer.public_key()), critical=False
    )
    for extension in extensions:
        builder = builder.add_extension(extension, critical=False)
    return builder.sign(signer, hashes.SHA256()).public_bytes(serialization.Encoding.PEM).decode()


def _builder(
    subject: x509.Name,
    issuer: x509.Name,
    public_key: rsa.RSAPublicKey | ec.EllipticCurvePublicKey,
    lifetime: datetime.timedelta,
) -> x509.CertificateBuilder:
    start = datetime.datetime.now(datetime.UTC) - datetime.timedelta(minutes=1)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(public_key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(start)
        .not_valid_after(start + lifetime)
    )


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True
