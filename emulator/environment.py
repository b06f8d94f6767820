"""The environment variables and files by which any Google client finds the emulated cloud."""

import os
import pathlib
import ssl

import certifi

from emulator.state import write_private

PROXY_PORT = 8089
PROJECT = "demo-project"
DIRECTORY = pathlib.Path(__file__).resolve().parent.parent / ".emulator"


def write(
    authorities_pem: str, credentials: str, proxy_port: int = PROXY_PORT, directory: pathlib.Path = DIRECTORY
) -> None:
    """Writes `ca-bundle.pem`, `credentials.json` and `env` (export lines) into a directory."""
    directory.mkdir(parents=True, exist_ok=True)
    bundle = directory / "ca-bundle.pem"
    bundle.write_text(f"{_system_authorities()}\n{authorities_pem}")
    write_private(directory / "credentials.json", credentials)
    proxy = f"http://127.0.0.1:{proxy_port}"
    variables = {
        "HTTPS_PROXY": proxy,
        "HTTP_PROXY": proxy,
        "NO_PROXY": "127.0.0.1",
        **dict.fromkeys(
            ("REQUESTS_CA_BUNDLE", "SSL_CERT_FILE", "HTTPLIB2_CA_CERTS", "CLOUDSDK_CORE_CUSTOM_CA_CERTS_FILE"), bundle
        ),
        "GOOGLE_APPLICATION_CREDENTIALS": directory / "credentials.json",
        "GOOGLE_CLOUD_PROJECT": PROJECT,
    }
    lines = [f"export {name}='{value}'\n" for name, value in variables.items()]
    # Lower-case names win over the others in most clients, and the machine may have its own.
    lines += [f"export {name.lower()}='{variables[name]}'\n" for name in ("HTTPS_PROXY", "HTTP_PROXY", "NO_PROXY")]
    (directory / "env").write_text("".join(lines))


def read() -> str:
    """Return the export lines; raises `RuntimeError` when the emulated cloud is not up."""
    file = DIRECTORY / "env"
    if not file.exists():
        raise RuntimeError("The emulated cloud is not up: start it with `python -m emulator`.")
    return file.read_text()


def _system_authorities() -> str:
    """Return what this machine trusts, its private authorities included, but never an older bundle of our own."""
    named = [os.environ.get(name, "") for name in ("REQUESTS_CA_BUNDLE", "SSL_CERT_FILE")]
    candidates = [*named, ssl.get_default_verify_paths().openssl_cafile, "/etc/ssl/certs/ca-certificates.crt"]
    for candidate in candidates:
        file = pathlib.Path(candidate)
        if candidate and file.is_file() and file.name != "ca-bundle.pem":
            return file.read_text()
    return pathlib.Path(certifi.where()).read_text()
