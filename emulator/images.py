"""Makes the Docker images that the emulated cloud and the molecule scenarios share.

Base systems come from the container registry that the Docker engine is set up for, or, where none answers, from
`mmdebstrap` and Debian's archive. The machine's own proxy and private certificate authorities are carried into
the images. An image is rebuilt when something it is made of changes, which a label records.
"""

import concurrent.futures
import dataclasses
import hashlib
import io
import os
import pathlib
import shutil
import subprocess
import sys
import tarfile
import tempfile
import time

LABEL = "mlops.mlflow_gcp.inputs"
SUITES = {"debian-12": "bookworm", "debian-13": "trixie"}
CLOUD_IMAGE = "mlflow-gcp/cloud:debian-13"

_HERE = pathlib.Path(__file__).resolve().parent
_HOST_CERTIFICATES = pathlib.Path("/usr/local/share/ca-certificates")
_TRUST = "/etc/ssl/certs/ca-certificates.crt"
_PROXY_VARIABLES = ("http_proxy", "https_proxy")
# Google's hosts are reached by plain DNS inside the emulated network, whatever proxy the machine has.
_NO_PROXY = (
    "localhost,127.0.0.1,169.254.169.254,.googleapis.com,.google.internal,.emulator.internal,packages.cloud.google.com,"
    "www.gstatic.com"
)

_INSTALL = "export DEBIAN_FRONTEND=noninteractive; apt-get update -qq; apt-get install -qq -y --no-install-recommends"
# What Google's own Debian images carry as far as the roles may count on it, and what the stand-ins need.
_VM_SCRIPT = f"""set -eu
{_INSTALL} systemd systemd-sysv dbus python3 python3-apt python3-cryptography python3-yaml ca-certificates \
  iproute2 procps curl gnupg openssl sudo cron >/dev/null
update-ca-certificates >/dev/null 2>&1
chmod 0755 /usr/local/sbin/emulated-guest
install -d /var/cache/emulated-guest
echo 'import emulated_guest' >/usr/lib/python3/dist-packages/emulated_guest.pth
systemctl -q enable emulated-guest.service
systemctl -q mask getty.target console-getty.service systemd-udevd.service apt-daily.timer apt-daily-upgrade.timer
install -d /etc/systemd/system.conf.d
printf '[Manager]\\nDefaultEnvironment=REQUESTS_CA_BUNDLE={_TRUST} SSL_CERT_FILE={_TRUST}\\n' \
  >/etc/systemd/system.conf.d/emulated-guest.conf
printf 'Defaults env_keep += "http_proxy https_proxy no_proxy REQUESTS_CA_BUNDLE SSL_CERT_FILE"\\n' \
  >/etc/sudoers.d/emulated-guest
rm -f /etc/machine-id; touch /etc/machine-id
apt-get clean; rm -rf /var/lib/apt/lists/*
"""
_CLOUD_SCRIPT = f"""set -eu
install -d /etc/postgresql-common
echo 'create_main_cluster = false' >/etc/postgresql-common/createcluster.conf
{_INSTALL} ca-certificates gnupg mariadb-client-core mariadb-server-core openssl pebble postgresql-17 \
  python3 python3-venv >/dev/null
useradd --system --create-home --home-dir /var/lib/mysql --shell /usr/sbin/nologin mysql
update-ca-certificates >/dev/null 2>&1
python3 -m venv /opt/venv
/opt/venv/bin/pip install --quiet --disable-pip-version-check --require-hashes -r /opt/requirements.txt
apt-get clean; rm -rf /var/lib/apt/lists/* /root/.cache
"""


def run(*command: str, stdin: bytes | None = None) -> str:
    """Runs a command; returns its standard output; raises `RuntimeError` with what it printed when it fails."""
    done = subprocess.run(command, input=stdin, capture_output=True, check=False)
    if done.returncode:
        printed = (done.stderr or done.stdout).decode(errors="replace")
        raise RuntimeError(f"{' '.join(command[:3])} … failed:\n{printed[-2000:]}")
    return done.stdout.decode()


def say(text: str) -> None:
    """Shows progress on standard error, so that standard output stays machine-readable."""
    print(f"==> {text}", file=sys.stderr, flush=True)


def engine_answers() -> bool:
    """True when a Docker engine answers at the usual place."""
    if not shutil.which("docker"):
        return False
    return subprocess.run(["docker", "version"], capture_output=True, check=False).returncode == 0


def ensure_engine() -> None:
    """Starts a Docker engine where none runs, installing Debian's package when root may.

    Raises `RuntimeError` that says what to do where this is not possible.
    """
    if engine_answers():
        return
    if os.geteuid() != 0 or not shutil.which("apt-get"):
        raise RuntimeError(
            "No Docker engine answers: install and start Docker, or run this as root on Debian or Ubuntu."
        )
    if not shutil.which("dockerd"):
        say("Installing Debian's Docker engine (docker.io)")
        run("apt-get", "update", "-qq")
        run("apt-get", "install", "-qq", "-y", "--no-install-recommends", "docker.io", "iptables")
        if not shutil.which("docker"):  # split from the engine in Debian 13
            run("apt-get", "install", "-qq", "-y", "--no-install-recommends", "docker-cli")
    say("Starting the Docker engine")
    if pathlib.Path("/run/systemd/system").is_dir():
        run("systemctl", "start", "docker")
    else:
        cache = pathlib.Path(".cache")
        cache.mkdir(exist_ok=True)
        with (cache / "dockerd.log").open("ab") as log:
            engine = subprocess.Popen(["dockerd"], stdout=log, stderr=log, start_new_session=True)
        (cache / "dockerd.pid").write_text(f"{engine.pid}\n")
    for _ in range(60):
        if engine_answers():
            return
        time.sleep(1)
    raise RuntimeError(
        "The Docker engine did not come up in 60 seconds: see .cache/dockerd.log or `journalctl -u docker`."
    )


def stop_engine() -> None:
    """Stops the Docker engine that `ensure_engine` started itself, if it did."""
    pid_file = pathlib.Path(".cache/dockerd.pid")
    if pid_file.exists():
        subprocess.run(["kill", pid_file.read_text().strip()], capture_output=True, check=False)
        pid_file.unlink()


@dataclasses.dataclass(frozen=True)
class _Image:
    tag: str
    suite: str
    script: str
    files: tuple[tuple[pathlib.Path, str], ...]  # source, place in the image

    def digest(self) -> str:
        """SHA-256 over everything the image is made of."""
        digest = hashlib.sha256(repr((self.suite, self.script, _environment())).encode())
        for source in [*_certificates(), *(source for source, _ in self.files)]:
            digest.update(source.read_bytes())
        return digest.hexdigest()


def _images() -> list[_Image]:
    guest = (
        (_HERE / "guest/emulated-guest", "/usr/local/sbin/emulated-guest"),
        (_HERE / "guest/emulated_guest.py", "/usr/lib/python3/dist-packages/emulated_guest.py"),
        (_HERE / "guest/emulated-guest.service", "/etc/systemd/system/emulated-guest.service"),
    )
    machines = [_Image(f"mlflow-gcp/vm:{family}", suite, _VM_SCRIPT, guest) for family, suite in SUITES.items()]
    cloud = _Image(
        CLOUD_IMAGE, SUITES["debian-13"], _CLOUD_SCRIPT, ((_HERE / "requirements.txt", "/opt/requirements.txt"),)
    )
    return [*machines, cloud]


def ensure() -> None:
    """Makes every image that is missing or out of date, independent ones side by side."""
    ensure_engine()
    images = [image for image in _images() if not _up_to_date(image)]
    suites = sorted({image.suite for image in images})
    if not all(_base_is_there(suite) for suite in suites) and not shutil.which("mmdebstrap"):
        if os.geteuid() != 0 or not shutil.which("apt-get"):
            raise RuntimeError("No container registry answers and mmdebstrap is not installed: install mmdebstrap.")
        say("Installing mmdebstrap")
        run("apt-get", "install", "-qq", "-y", "--no-install-recommends", "mmdebstrap", "debian-archive-keyring")
    with concurrent.futures.ThreadPoolExecutor() as pool:
        list(pool.map(_ensure_base, suites))
        list(pool.map(_build, images))
    run("docker", "image", "prune", "--force", "--filter", f"label={LABEL}")  # what was just replaced


def _up_to_date(image: _Image) -> bool:
    template = f'{{{{index .Config.Labels "{LABEL}"}}}}'
    found = subprocess.run(
        ["docker", "image", "inspect", "--format", template, image.tag], capture_output=True, check=False
    )
    return found.returncode == 0 and found.stdout.decode().strip() == image.digest()


def _base_is_there(suite: str) -> bool:
    """True when the base is local already or could be pulled."""
    tag = f"mlflow-gcp/base:{suite}"
    if _succeeds("docker", "image", "inspect", tag):
        return True
    return _succeeds("docker", "pull", "--quiet", f"debian:{suite}-slim") and _succeeds(
        "docker", "tag", f"debian:{suite}-slim", tag
    )


def _ensure_base(suite: str) -> None:
    if _base_is_there(suite):
        return
    say(f"Making a minimal Debian ({suite}) with mmdebstrap")
    with tempfile.TemporaryDirectory() as directory:
        archive = f"{directory}/{suite}.tar"
        run("mmdebstrap", "--quiet", "--variant=minbase", "--include=ca-certificates", suite, archive)
        run("docker", "import", archive, f"mlflow-gcp/base:{suite}")


def _build(image: _Image) -> None:
    say(f"Building {image.tag}")
    settings = [item for name, value in _environment().items() for item in ("--env", f"{name}={value}")]
    container = run(
        "docker", "create", *settings, f"mlflow-gcp/base:{image.suite}", "/bin/sh", "-c", image.script
    ).strip()
    try:
        run("docker", "cp", "-", f"{container}:/", stdin=_archive(image))
        run("docker", "start", "--attach", container)
        changes = [f"LABEL {LABEL}={image.digest()}", 'CMD ["/lib/systemd/systemd"]']
        run("docker", "commit", *(item for change in changes for item in ("--change", change)), container, image.tag)
    finally:
        run("docker", "rm", "--force", container)


def _archive(image: _Image) -> bytes:
    """Return a tar archive of the image's files and the machine's own certificate authorities, rooted at `/`."""
    places = [(source, f"{_HOST_CERTIFICATES}/{source.name}") for source in _certificates()]
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for source, place in [*places, *image.files]:
            archive.add(source, arcname=place.lstrip("/"), filter=_owned_by_root)
    return buffer.getvalue()


def _owned_by_root(member: tarfile.TarInfo) -> tarfile.TarInfo:
    member.uid = member.gid = 0
    member.uname = member.gname = "root"
    return member


def _certificates() -> list[pathlib.Path]:
    return sorted(_HOST_CERTIFICATES.rglob("*.crt"))


def _environment() -> dict[str, str]:
    """What processes inside the images find in their environment."""
    proxies = {name: os.environ.get(name) or os.environ.get(name.upper(), "") for name in _PROXY_VARIABLES}
    proxies = {name: value for name, value in proxies.items() if value}
    if proxies:
        proxies["no_proxy"] = _NO_PROXY
    return {"REQUESTS_CA_BUNDLE": _TRUST, "SSL_CERT_FILE": _TRUST, **proxies}


def _succeeds(*command: str) -> bool:
    return subprocess.run(command, capture_output=True, check=False).returncode == 0
