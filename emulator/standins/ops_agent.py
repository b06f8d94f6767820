"""A Debian package that stands in for Google Cloud's Ops Agent, in a signed apt repository.

`python -m emulator.standins.ops_agent DIRECTORY` makes both; it needs gpg and the standard library, nothing else.
The layout is that of https://packages.cloud.google.com/apt. What the package does not do: see `ops_agent_engine.py`.
"""

import email.utils
import gzip
import hashlib
import io
import os
import pathlib
import subprocess
import sys
import tarfile
import tempfile

NAME = "google-cloud-ops-agent"
VERSION = "2.60.0~standin"
SUITES = ("google-cloud-ops-agent-bookworm-2", "google-cloud-ops-agent-trixie-2")
ARCHITECTURES = ("amd64", "arm64")

_ENGINE = "/opt/google-cloud-ops-agent/libexec/google_cloud_ops_agent_engine"
_CONFIGURATION = "/etc/google-cloud-ops-agent/config.yaml"
_MAIN_UNIT = f"""\
[Unit]
Description=Google Cloud Ops Agent (stand-in)
Wants={NAME}-fluent-bit.service {NAME}-opentelemetry-collector.service network-online.target
After=network-online.target

[Service]
Type=oneshot
ExecStartPre={_ENGINE} -in {_CONFIGURATION}
ExecStart=/bin/true
RemainAfterExit=yes

[Install]
WantedBy=multi-user.target
"""
_PART_UNIT = f"""\
[Unit]
Description=Google Cloud Ops Agent (stand-in): {{part}}
PartOf={NAME}.service
After=network-online.target {NAME}.service

[Service]
RuntimeDirectory={NAME}-{{name}}
StateDirectory={NAME}/{{name}}
ExecStartPre={_ENGINE} -service={{service}} -in {_CONFIGURATION}
ExecStart={_ENGINE} -in {_CONFIGURATION} -run {{part}} -state ${{{{STATE_DIRECTORY}}}}
Restart=always
"""
_CONTROL = f"""\
Package: {NAME}
Version: {VERSION}
Architecture: all
Maintainer: mlops.mlflow_gcp <nobody@example.com>
Depends: python3, python3-yaml
Section: misc
Priority: optional
Description: stand-in for Google Cloud Ops Agent
 Checks the agent's configuration and shows what would be collected.
"""
_AFTER_INSTALL = f"""\
#!/bin/sh
set -e
if [ "$1" = configure ] && [ -d /run/systemd/system ]; then
  systemctl daemon-reload
  systemctl enable {NAME}.service
  systemctl restart {NAME}.service
fi
"""
_BEFORE_REMOVAL = f"""\
#!/bin/sh
set -e
if [ "$1" = remove ] && [ -d /run/systemd/system ]; then
  systemctl disable --now {NAME}.service
fi
"""


def build_package() -> bytes:
    """Return the Debian package: an ar archive of two tar archives, the same bytes every time."""
    units = {
        f"/lib/systemd/system/{NAME}.service": _MAIN_UNIT,
        f"/lib/systemd/system/{NAME}-fluent-bit.service": _PART_UNIT.format(
            name="fluent-bit", part="logging", service="fluentbit"
        ),
        f"/lib/systemd/system/{NAME}-opentelemetry-collector.service": _PART_UNIT.format(
            name="opentelemetry-collector", part="metrics", service="otel"
        ),
    }
    engine = pathlib.Path(__file__).with_name("ops_agent_engine.py").read_text()
    configuration = "# The agent's own configuration goes here; nothing is collected that it does not name.\n"
    data = {_CONFIGURATION: (configuration, 0o644), _ENGINE: (engine, 0o755)}
    data |= {f"/usr{path}": (text, 0o644) for path, text in units.items()}
    control = {
        "/control": (_CONTROL, 0o644),
        "/conffiles": (f"{_CONFIGURATION}\n", 0o644),
        "/postinst": (_AFTER_INSTALL, 0o755),
        "/prerm": (_BEFORE_REMOVAL, 0o755),
    }
    members = {"debian-binary": b"2.0\n", "control.tar.gz": _tar(control), "data.tar.gz": _tar(data)}
    archive = b"!<arch>\n"
    for name, content in members.items():
        archive += f"{name:<16}{0:<12}{0:<6}{0:<6}{'100644':<8}{len(content):<10}`\n".encode()
        archive += content + b"\n" * (len(content) % 2)
    return archive


def _tar(files: dict[str, tuple[str, int]]) -> bytes:
    """Return a compressed tar archive of `{path: (text, mode)}` with their directories."""
    buffer = io.BytesIO()
    directories = sorted({str(parent) for path in files for parent in pathlib.PurePath(path).parents} - {"/"})
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for path in directories:
            member = tarfile.TarInfo(f".{path}")
            member.type, member.mode = tarfile.DIRTYPE, 0o755
            archive.addfile(member)
        for path, (text, mode) in files.items():
            member = tarfile.TarInfo(f".{path}")
            content = text.encode()
            member.size, member.mode = len(content), mode
            archive.addfile(member, io.BytesIO(content))
    return gzip.compress(buffer.getvalue(), mtime=0)


def build_apt_repository(target_dir: pathlib.Path) -> None:
    """Make `dists`, `pool` and `doc/apt-key.gpg` (armoured) in a directory, signed with a new key that is thrown away.

    Raises `RuntimeError` when gpg is missing or fails.
    """
    package = build_package()
    pool = f"pool/{NAME}_{VERSION}_all.deb"
    _write(target_dir / pool, package)
    index = f"{_CONTROL}Filename: {pool}\nSize: {len(package)}\nSHA256: {hashlib.sha256(package).hexdigest()}\n\n"
    with tempfile.TemporaryDirectory() as home:
        identity = "Ops Agent stand-in <nobody@example.com>"
        _gpg(home, "--passphrase", "", "--quick-generate-key", identity, "rsa3072", "sign", "never")
        _write(target_dir / "doc/apt-key.gpg", _gpg(home, "--armor", "--export"))
        for suite in SUITES:
            files: dict[str, bytes] = {}
            for architecture in ARCHITECTURES:
                path = f"main/binary-{architecture}/Packages"
                files |= {path: index.encode(), f"{path}.gz": gzip.compress(index.encode(), mtime=0)}
            release = _release(suite, files)
            signed = _gpg(home, "--clearsign", stdin=release)
            for path, content in {**files, "Release": release, "InRelease": signed}.items():
                _write(target_dir / "dists" / suite / path, content)
        subprocess.run(["gpgconf", "--homedir", home, "--kill", "gpg-agent"], capture_output=True, check=False)


def _release(suite: str, files: dict[str, bytes]) -> bytes:
    sums = "".join(f" {hashlib.sha256(text).hexdigest()} {len(text)} {path}\n" for path, text in files.items())
    return (
        f"Origin: {NAME}\nLabel: {NAME}\nSuite: {suite}\nCodename: {suite}\n"
        f"Date: {email.utils.formatdate(usegmt=True)}\nArchitectures: {' '.join(ARCHITECTURES)}\nComponents: main\n"
        f"SHA256:\n{sums}"
    ).encode()


def _gpg(home: str, *arguments: str, stdin: bytes = b"") -> bytes:
    command = ["gpg", "--homedir", home, "--batch", "--quiet", "--pinentry-mode", "loopback", *arguments]
    try:
        done = subprocess.run(command, input=stdin, capture_output=True, check=False)
    except FileNotFoundError as error:
        raise RuntimeError("gpg is not installed: install the package gnupg") from error
    if done.returncode:
        raise RuntimeError(f"gpg failed: {done.stderr.decode(errors='replace').strip()}")
    return done.stdout


def _write(path: pathlib.Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    new = path.with_name(f"{path.name}.new")
    new.write_bytes(content)
    os.replace(new, path)


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: python -m emulator.standins.ops_agent DIRECTORY")
    build_apt_repository(pathlib.Path(sys.argv[1]))
