"""What the emulated cloud does outside its own process: virtual machines and databases as Docker containers.

Every method is idempotent: repeated after a crash it finishes the work. All raise `EffectError`. The methods block, for
minutes at most; call them from a worker thread.
Not emulated: firewall rules, machine types and disk sizes, startup scripts.
"""

import contextlib
import hashlib
import io
import itertools
import json
import pathlib
import re
import tarfile
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import IO, Any, Protocol

import docker
from docker.errors import APIError, DockerException, ImageNotFound, NotFound
from docker.models.containers import Container
from docker.utils import socket as docker_socket

from emulator import mysql_instance, sql_engines
from emulator.sql_engines import ENGINES, IAM_ROLES, Engine, Script
from emulator.sql_instance import IAM_FLAG

LABEL = "mlops.mlflow_gcp"
SQL_IMAGE = "mlflow-gcp/cloud:debian-13"
_DOMAIN = ".localhost"
MYSQL_FLAGS = {
    mysql_instance.IAM_FLAG,
    "general_log",
    "innodb_lock_wait_timeout",
    "local_infile",
    "long_query_time",
    "max_allowed_packet",
    "max_connections",
    "slow_query_log",
    "sort_buffer_size",
    "wait_timeout",
}
DATABASE_FLAGS = {
    "autovacuum_naptime",
    "autovacuum_vacuum_scale_factor",
    IAM_FLAG,
    "idle_in_transaction_session_timeout",
    "log_checkpoints",
    "log_connections",
    "log_disconnections",
    "log_lock_waits",
    "log_min_duration_statement",
    "log_statement",
    "log_temp_files",
    "maintenance_work_mem",
    "max_connections",
    "random_page_cost",
    "statement_timeout",
    "track_io_timing",
    "work_mem",
}

_SQL_PROGRAMS = ("__init__.py", "mysql_front.py", "mysql_instance.py", "sql_front.py", "sql_instance.py")
_HERE = pathlib.Path(__file__).resolve().parent
_AUTHORITY_PATH = "usr/local/share/ca-certificates/emulated-cloud.crt"
_CERTIFICATE_END = "-----END CERTIFICATE-----"
_MEMORY_DIRECTORIES = {"run": "", "run/lock": "", "tmp": "exec"}
_BOOT_SECONDS = 90
_STOP_SECONDS = 30
_REQUEST_SECONDS = 120
# Containers without an external address keep one of these over restarts; Docker's own choices lie above.
_INTERNAL_ADDRESSES = range(128, 192)
# A copy has a log of its own.
_COPY = "cp --archive /from/. /to/\nrm -rf /to/base /to/archive"
_PUBLISHED_PORTS = {"443/tcp": ("127.0.0.1", 8443), "80/tcp": ("127.0.0.1", 8080)}


class EffectError(Exception):
    """Why an effect could not be brought about, in words for the operation's error."""


class Effects(Protocol):
    """What the engine asks for; resources are in the shape of their REST API.

    `holds_data`: whether databases are real, so that a clone has something to copy.
    """

    holds_data: bool

    def create_instance(
        self, project: str, zone: str, instance: Mapping[str, Any], external_ip: str | None, image_family: str
    ) -> dict[str, str]:
        """Make and boot a VM; returns `{"ip": address}`."""

    def start_instance(self, name: str) -> None:
        """Boot a stopped VM."""

    def stop_instance(self, name: str) -> None:
        """Shut a VM down; its disk stays."""

    def reset_instance(self, name: str) -> None:
        """Restart a VM without a shutdown."""

    def delete_instance(self, name: str) -> None:
        """Remove a VM and its disk."""

    def create_sql_instance(
        self,
        project: str,
        instance: Mapping[str, Any],
        server_cert_pem: str,
        server_key_pem: str,
        client_ca_pem: str,
    ) -> dict[str, str]:
        """Make a database server, or bring an existing one to its settings; returns `{"ip": address}`."""

    def restart_sql_instance(self, name: str) -> None:
        """Restart an instance."""

    def fail_over_sql_instance(self, name: str) -> None:
        """Start an instance from what its disk holds, without having stopped it."""

    def delete_sql_instance(self, name: str) -> None:
        """Remove an instance and its data."""

    def create_sql_database(self, instance: str, name: str) -> None:
        """Make a database owned by cloudsqlsuperuser."""

    def delete_sql_database(self, instance: str, name: str) -> None:
        """Remove a database; fails while it is in use."""

    def create_sql_user(self, instance: str, user: Mapping[str, Any]) -> None:
        """Make a user, in the shape that `sql_engines` says."""

    def update_sql_user(self, instance: str, user: Mapping[str, Any]) -> None:
        """Change what is given of password and databaseRoles, which is the exact list."""

    def delete_sql_user(self, instance: str, name: str) -> None:
        """Remove a user; fails while it owns anything."""

    def export_sql_database(self, instance: str, name: str, file: pathlib.Path) -> None:
        """Write a database's dump, as SQL, to a file."""

    def import_sql_database(self, instance: str, name: str, file: pathlib.Path) -> None:
        """Run a dump in a database; stops at the first statement that fails, and what went before it stays."""

    def back_up_sql_instance(self, instance: str, backup: str) -> None:
        """Keep a copy of all that an instance holds, users included."""

    def restore_sql_instance(self, instance: str, source: str, backup: str) -> None:
        """Put a copy of some instance in the place of what an instance holds."""

    def delete_sql_backup(self, instance: str, backup: str) -> None:
        """Remove a copy."""

    def clone_sql_instance(self, source: str, name: str, point_in_time: str | None) -> None:
        """Give an instance that is about to be made what another holds, or held at a moment (RFC 3339)."""

    def address_of_domain(self, host: str) -> str | None:
        """Return the address of the running VM that serves one of the operator's names."""


def check_database_flags(settings: Mapping[str, Any], version: str) -> dict[str, str]:
    """Return `settings.databaseFlags` as `{name: value}`; raises `EffectError` for one that is not emulated."""
    flags = {str(flag["name"]): str(flag.get("value", "")) for flag in settings.get("databaseFlags", [])}
    unknown = sorted(set(flags) - (MYSQL_FLAGS if sql_engines.of(version) == "MYSQL" else DATABASE_FLAGS))
    if unknown:
        raise EffectError(f"Invalid request: Invalid flag name: {', '.join(unknown)}.")
    return flags


class NoEffects:
    """Answers as if everything had worked; for tests of the engine alone."""

    holds_data = False

    def create_instance(
        self, project: str, zone: str, instance: Mapping[str, Any], external_ip: str | None, image_family: str
    ) -> dict[str, str]:
        """Return the external address or a constant."""
        del project, zone, instance, image_family
        return {"ip": external_ip or "198.18.0.128"}

    def create_sql_instance(
        self,
        project: str,
        instance: Mapping[str, Any],
        server_cert_pem: str,
        server_key_pem: str,
        client_ca_pem: str,
    ) -> dict[str, str]:
        """Return a constant after the same check of flags."""
        del project, server_cert_pem, server_key_pem, client_ca_pem
        check_database_flags(instance.get("settings", {}), instance["databaseVersion"])
        return {"ip": "198.18.0.129"}

    def export_sql_database(self, instance: str, name: str, file: pathlib.Path) -> None:
        """Write something that differs from database to database."""
        file.write_text(f"-- {instance}/{name}\n")

    def address_of_domain(self, host: str) -> str | None:
        """Know no names."""
        del host
        return None

    def _nothing(self, *_: object) -> None:
        """Do nothing."""

    start_instance = stop_instance = reset_instance = delete_instance = _nothing
    restart_sql_instance = fail_over_sql_instance = delete_sql_instance = _nothing
    create_sql_database = delete_sql_database = create_sql_user = update_sql_user = delete_sql_user = _nothing
    import_sql_database = back_up_sql_instance = restore_sql_instance = delete_sql_backup = _nothing
    clone_sql_instance = _nothing


class DockerEffects:
    """Effects by the Docker engine that the environment names.

    `authority_pem` is the certificate VMs must trust, `roots_path` a file, once it is there, with those of the emulated
    Let's Encrypt, which they trust as well. `metadata_address` is where the emulator answers on the Docker network
    `network`.
    """

    holds_data = True

    def __init__(
        self,
        authority_pem: str,
        roots_path: pathlib.Path | None = None,
        metadata_address: str = "198.18.0.2",
        network: str = "mlflow-gcp",
    ) -> None:
        self._authority_pem = authority_pem
        self._roots_path = roots_path
        self._metadata_address = metadata_address
        self._network = network
        self._placing = threading.Lock()
        with _explained("reach the Docker engine"):
            self._docker = docker.from_env(timeout=_REQUEST_SECONDS)

    def create_instance(
        self, project: str, zone: str, instance: Mapping[str, Any], external_ip: str | None, image_family: str
    ) -> dict[str, str]:
        """Make and boot a systemd container; returns `{"ip": address}` once systemd is up."""
        name = instance["name"]
        with _explained(f"create the VM {name}"), self._placing:
            domain = f"{zone}.c.{project}.internal"
            container = self._find(f"gce-{name}") or self._make_machine(name, domain, external_ip, image_family)
            container.put_archive("/", _archive({path: (pem, 0o644) for path, pem in self._trusted().items()}))
        self._boot(container, name)
        return {"ip": self._address(container)}

    def _trusted(self) -> dict[str, str]:
        """Return the certificates that VMs trust, each by its path in a file of its own, as Debian wants them."""
        text = self._roots_path.read_text() if self._roots_path and self._roots_path.exists() else ""
        roots = [f"{root}{_CERTIFICATE_END}\n" for root in text.split(_CERTIFICATE_END) if root.strip()]
        numbered = {_AUTHORITY_PATH.replace("cloud", f"acme-{number}"): root for number, root in enumerate(roots)}
        return {_AUTHORITY_PATH: self._authority_pem, **numbered}

    def _make_machine(self, name: str, domain: str, external_ip: str | None, image_family: str) -> Container:
        first = external_ip is not None and not self._containers("external-ip")
        return self._create(
            f"gce-{name}",
            f"mlflow-gcp/vm:{image_family}",
            external_ip,
            # The deployment's name too: with Docker, what the domain's record would say.
            aliases=[f"{name}.{domain}", _domain(name)],
            labels={f"{LABEL}.external-ip": external_ip} if external_ip else {},
            hostname=name,
            cap_add=["SYS_ADMIN", "NET_ADMIN"],
            security_opt=["seccomp=unconfined", "apparmor=unconfined"],
            cgroupns="host",
            volumes=["/sys/fs/cgroup:/sys/fs/cgroup:rw"],
            tmpfs={f"/{place}": options for place, options in _MEMORY_DIRECTORIES.items()},
            environment={"container": "docker"},
            stop_signal="SIGRTMIN+3",
            ports=_PUBLISHED_PORTS if first else {},
            # Google's images carry this entry; the boot unit routes the link-local address by it.
            extra_hosts={"metadata.google.internal": self._metadata_address},
        )

    def start_instance(self, name: str) -> None:
        """Boot a stopped VM."""
        self._boot(self._existing(f"gce-{name}"), name)

    def stop_instance(self, name: str) -> None:
        """Shut a VM down; its disk stays."""
        with _explained(f"stop the VM {name}"):
            self._existing(f"gce-{name}").stop(timeout=_STOP_SECONDS)

    def reset_instance(self, name: str) -> None:
        """Restart a VM without a shutdown."""
        container = self._existing(f"gce-{name}")
        with _explained(f"reset the VM {name}"):
            container.restart(timeout=0)
        self._boot(container, name)

    def delete_instance(self, name: str) -> None:
        """Remove a VM and its disk."""
        self._remove(f"gce-{name}")

    def create_sql_instance(
        self,
        project: str,
        instance: Mapping[str, Any],
        server_cert_pem: str,
        server_key_pem: str,
        client_ca_pem: str,
    ) -> dict[str, str]:
        """Make an instance, or bring an existing one to its flags and activation policy; returns `{"ip": address}`."""
        del project
        name = instance["name"]
        settings = instance.get("settings", {})
        flags = check_database_flags(settings, instance["databaseVersion"])
        engine = sql_engines.of(instance["databaseVersion"])
        # The name that PostgreSQL's has: MySQL's log is a setting that is kept.
        archived = bool(settings.get("backupConfiguration", {}).get("pointInTimeRecoveryEnabled"))
        files = {
            "etc/cloudsql/server-cert.pem": (server_cert_pem, 0o644),
            "etc/cloudsql/server-key.pem": (server_key_pem, 0o600),
            "etc/cloudsql/client-ca.pem": (client_ca_pem, 0o644),
            "etc/cloudsql/instance.json": (json.dumps({"flags": flags, "archived": archived}), 0o644),
            **{f"opt/cloudsql/emulator/{program}": ((_HERE / program).read_text(), 0o644) for program in _SQL_PROGRAMS},
        }
        digest = hashlib.sha256(json.dumps(files).encode()).hexdigest()
        with _explained(f"create the Cloud SQL instance {name}"):
            with self._placing:
                # By this name the proxy calls it: with Docker, what the record of a private zone would say.
                aliases = [instance["dnsName"].rstrip(".")] if "dnsName" in instance else []
                container = self._find(f"cloudsql-{name}") or self._make_sql_instance(name, engine, aliases)
            if digest != _read(container, "/etc/cloudsql/digest"):
                container.stop(timeout=_STOP_SECONDS)
                container.put_archive("/", _archive({**files, "etc/cloudsql/digest": (digest, 0o644)}))
            if settings.get("activationPolicy") == "NEVER":
                container.stop(timeout=_STOP_SECONDS)
            else:
                container.start()
                self._wait_for_database(container, name)
                self._begin_log(container)
        return {"ip": self._address(container)}

    def _begin_log(self, container: Container) -> None:
        """Make the copy from which point-in-time recovery begins, unless there is one or none is asked for."""
        engine = _engine(container)
        if engine.begin_log:
            status, printed = self._exec(container, engine, ("sh", "-c", engine.begin_log), [])
            if status:
                raise EffectError(f"Point-in-time recovery could not be begun: {printed.strip()}")

    def _make_sql_instance(self, name: str, engine: str, aliases: Sequence[str]) -> Container:
        volume = f"cloudsql-{name}"
        self._docker.volumes.create(volume, labels={LABEL: "emulator"})
        return self._create(
            f"cloudsql-{name}",
            SQL_IMAGE,
            None,
            aliases,
            command=["/usr/bin/python3", "-m", ENGINES[engine].program],
            labels={f"{LABEL}.engine": engine},
            working_dir="/opt/cloudsql",
            volumes=[f"{volume}:{ENGINES[engine].volume}"],
            shm_size="256m",
        )

    def restart_sql_instance(self, name: str) -> None:
        """Restart an instance."""
        self._restart_sql_instance(name, _STOP_SECONDS)

    def fail_over_sql_instance(self, name: str) -> None:
        """Start an instance from what its disk holds, without having stopped it."""
        self._restart_sql_instance(name, 0)

    def _restart_sql_instance(self, name: str, stop_seconds: int) -> None:
        container = self._existing(f"cloudsql-{name}")
        with _explained(f"restart the Cloud SQL instance {name}"):
            container.restart(timeout=stop_seconds)
        self._wait_for_database(container, name)

    def delete_sql_instance(self, name: str) -> None:
        """Remove an instance and its data."""
        self._remove(f"cloudsql-{name}")
        with _explained(f"delete the data of the Cloud SQL instance {name}"), contextlib.suppress(NotFound):
            self._docker.volumes.get(f"cloudsql-{name}").remove()
        with _explained(f"delete the backups of the Cloud SQL instance {name}"):
            for volume in self._docker.volumes.list(filters={"label": f"{LABEL}.backup-of={name}"}):
                volume.remove()

    def create_sql_database(self, instance: str, name: str) -> None:
        """Make a database owned by cloudsqlsuperuser."""
        self._sql(instance, lambda engine: (engine.create_database, {"name": name}))

    def delete_sql_database(self, instance: str, name: str) -> None:
        """Remove a database; fails while it is in use."""
        self._sql(instance, lambda engine: (engine.drop_database, {"name": name}))

    def create_sql_user(self, instance: str, user: Mapping[str, Any]) -> None:
        """Make a user: a built-in one is a member of cloudsqlsuperuser unless databaseRoles say otherwise."""
        default = [] if user.get("type") in IAM_ROLES else ["cloudsqlsuperuser"]
        self.update_sql_user(instance, {**user, "databaseRoles": user.get("databaseRoles") or default})

    def update_sql_user(self, instance: str, user: Mapping[str, Any]) -> None:
        """Change what is given of password and databaseRoles, which is the exact list."""
        self._sql(instance, lambda engine: engine.make_user(user))

    def delete_sql_user(self, instance: str, name: str) -> None:
        """Remove a user; fails while it owns anything."""
        self._sql(instance, lambda engine: (engine.drop_user, {"name": name}))

    def export_sql_database(self, instance: str, name: str, file: pathlib.Path) -> None:
        """Write a database's dump, as SQL, to a file."""
        with file.open("wb") as target:
            self._transfer(instance, "dump", name, (), target)

    def import_sql_database(self, instance: str, name: str, file: pathlib.Path) -> None:
        """Run a dump in a database; stops at the first statement that fails, and what went before it stays."""
        with file.open("rb") as source:
            chunks = itertools.chain(iter(lambda: source.read(1 << 20), b""), [b"\n\\q\n"])
            self._transfer(instance, "load", name, chunks, io.BytesIO())

    def _transfer(self, instance: str, verb: str, name: str, stdin: Iterable[bytes], stdout: IO[bytes]) -> None:
        container = self._existing(f"cloudsql-{instance}")
        engine = _engine(container)
        command = getattr(engine, verb)
        if not command:
            raise EffectError("The emulated cloud exports and imports databases of PostgreSQL only.")
        with _explained(f"{verb} the database {name}"):
            status, printed = self._exec(container, engine, (*command, name), stdin, stdout)
        if status:
            raise EffectError(printed.strip() or f"{command[0]} ended with {status}")

    def back_up_sql_instance(self, instance: str, backup: str) -> None:
        """Keep a copy of all that an instance holds, as of one moment: from it a server recovers as after a crash."""
        container, volume = self._existing(f"cloudsql-{instance}"), f"sqlbackup-{instance}-{backup}"
        with _explained(f"back up the Cloud SQL instance {instance}"):
            self._docker.volumes.create(volume, labels={LABEL: "emulator", f"{LABEL}.backup-of": instance})
            container.pause()
            try:
                self._copy_volume(f"cloudsql-{instance}", volume)
            finally:
                container.unpause()

    def restore_sql_instance(self, instance: str, source: str, backup: str) -> None:
        """Put a copy of some instance in the place of what an instance holds."""
        container = self._existing(f"cloudsql-{instance}")
        with _explained(f"restore the Cloud SQL instance {instance}"):
            container.stop(timeout=_STOP_SECONDS)
            self._copy_volume(f"sqlbackup-{source}-{backup}", f"cloudsql-{instance}")
            container.start()
        self._wait_for_database(container, instance)
        with _explained(f"begin the log of the Cloud SQL instance {instance}"):
            self._begin_log(container)

    def delete_sql_backup(self, instance: str, backup: str) -> None:
        """Remove a copy."""
        with _explained(f"delete the backup {backup}"), contextlib.suppress(NotFound):
            self._docker.volumes.get(f"sqlbackup-{instance}-{backup}").remove()

    def clone_sql_instance(self, source: str, name: str, point_in_time: str | None) -> None:
        """Give an instance that is about to be made what another holds, or held at a moment."""
        container = self._existing(f"cloudsql-{source}")
        # What an attempt that was interrupted left.
        self.delete_sql_instance(name)
        with _explained(f"clone the Cloud SQL instance {source}"):
            self._docker.volumes.create(f"cloudsql-{name}", labels={LABEL: "emulator"})
            if point_in_time:
                engine = _engine(container)
                status, printed = self._exec(container, engine, ("sh", "-c", engine.end_log), [])
                if status:
                    raise EffectError(f"The log could not be read: {printed.strip()}")
                self._copy_volume(f"cloudsql-{source}", f"cloudsql-{name}", engine.recover.format(time=point_in_time))
                return
            container.pause()
            try:
                self._copy_volume(f"cloudsql-{source}", f"cloudsql-{name}")
            finally:
                container.unpause()

    def _copy_volume(self, source: str, target: str, command: str = _COPY) -> None:
        self._docker.containers.run(
            SQL_IMAGE,
            ["sh", "-ec", f"find /to -mindepth 1 -delete\n{command}"],
            volumes=[f"{source}:/from:ro", f"{target}:/to"],
            labels={LABEL: "emulator"},
            network_mode="none",
            remove=True,
        )

    def address_of_domain(self, host: str) -> str | None:
        """Return the address of the running VM that serves a deployment's name."""
        if not host.endswith(_DOMAIN):
            return None
        with _explained(f"find the VM behind {host}"):
            machines = [c for c in self._containers("ip") if str(c.name).startswith("gce-")]
            serving = [c for c in machines if _domain(str(c.name).removeprefix("gce-")) == host]
            running = [c for c in serving if c.status == "running"]
        return self._address(running[0]) if running else None

    def _create(
        self, name: str, image: str, address: str | None, aliases: Sequence[str] = (), **options: Any
    ) -> Container:
        """Create a container with an address of its own; the caller holds `_placing`."""
        address = address or self._free_address()
        endpoint = self._docker.api.create_endpoint_config(aliases=list(aliases), ipv4_address=address)
        labels = {LABEL: "emulator", f"{LABEL}.ip": address, **options.pop("labels", {})}
        options["restart_policy"] = {"Name": "unless-stopped"}
        return self._docker.containers.create(
            image,
            name=name,
            labels=labels,
            network=self._network,
            networking_config={self._network: endpoint},
            **options,
        )

    def _free_address(self) -> str:
        taken = {self._address(container) for container in self._containers("ip")}
        prefix = self._metadata_address.rpartition(".")[0]
        for number in _INTERNAL_ADDRESSES:
            if (address := f"{prefix}.{number}") not in taken:
                return address
        raise EffectError(f"All {len(_INTERNAL_ADDRESSES)} internal addresses are taken: delete an instance.")

    def _containers(self, label: str) -> list[Container]:
        """Return the containers with a label of ours, oldest first, stopped ones included."""
        return list(reversed(self._docker.containers.list(all=True, filters={"label": f"{LABEL}.{label}"})))

    def _find(self, name: str) -> Container | None:
        try:
            return self._docker.containers.get(name)
        except NotFound:
            return None

    def _existing(self, name: str) -> Container:
        with _explained(f"find the container {name}"):
            container = self._find(name)
        if container is None:
            raise EffectError(f"The container {name} is gone: delete the instance and create it again.")
        return container

    @staticmethod
    def _address(container: Container) -> str:
        return str(container.labels[f"{LABEL}.ip"])

    def _remove(self, name: str) -> None:
        with _explained(f"remove the container {name}"), contextlib.suppress(NotFound):
            self._docker.containers.get(name).remove(force=True, v=True)

    def _boot(self, container: Container, name: str) -> None:
        with _explained(f"start the VM {name}"):
            container.start()
        _wait(container, f"The VM {name} did not boot", ["systemctl", "is-system-running"], _booted)

    def _wait_for_database(self, container: Container, name: str) -> None:
        ready = _engine(container).ready
        _wait(container, f"The Cloud SQL instance {name} did not start", list(ready), lambda status, _: status == 0)

    def _sql(self, instance: str, script_of: Callable[[Engine], Script]) -> None:
        """Run an engine's script by its client."""
        container = self._existing(f"cloudsql-{instance}")
        engine = _engine(container)
        with _explained(f"change the Cloud SQL instance {instance}"):
            script = engine.text(*script_of(engine)).encode()
            status, printed = self._exec(container, engine, engine.client, [script])
        if status:
            words = printed.partition("ERROR")[2].lstrip(":").strip() or printed.strip()
            raise EffectError(words or f"{engine.client[0]} ended with {status}")

    def _exec(
        self,
        container: Container,
        engine: Engine,
        command: Sequence[str],
        stdin: Iterable[bytes],
        stdout: IO[bytes] | None = None,
    ) -> tuple[int, str]:
        """Run a program as the engine's user; returns its status and what it printed, without what went to `stdout`."""
        api = self._docker.api
        identifier = api.exec_create(container.id, list(command), stdin=True, user=engine.user)["Id"]
        stream: Any = api.exec_start(identifier, socket=True)
        stream._sock.settimeout(_REQUEST_SECONDS)
        # One that ends early says why.
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            for chunk in stdin:
                stream._sock.sendall(chunk)
        printed = b""
        for kind, data in docker_socket.frames_iter(stream, tty=False):
            if stdout and kind == docker_socket.STDOUT:
                stdout.write(data)
            else:
                printed += data
        return api.exec_inspect(identifier)["ExitCode"], printed.decode(errors="replace")


def _engine(container: Container) -> Engine:
    """Return the engine of a Cloud SQL container; one that does not say is older than the choice."""
    return ENGINES[container.labels.get(f"{LABEL}.engine", "POSTGRES")]


def _domain(name: str) -> str:
    """Return the operator's name for a VM: those of a deployment are numbered."""
    return re.sub(r"-[0-9]+$", "", name) + _DOMAIN


def _booted(status: int, printed: str) -> bool:
    return status == 0 or printed == "degraded"


def _wait(container: Container, failure: str, command: list[str], done: Callable[[int, str], bool]) -> None:
    """Repeat a command in a container until it answers as wanted; else the error has the container's last words."""
    deadline = time.monotonic() + _BOOT_SECONDS
    printed = ""
    while time.monotonic() < deadline:
        try:
            result: Any = container.exec_run(command)
        except (APIError, OSError) as error:  # not running: it may be about to come back
            printed = str(error)
        else:
            printed = result.output.decode(errors="replace").strip()
            if done(result.exit_code, printed):
                return
        time.sleep(0.5)
    with _explained("read a container's log"):
        log: Any = container.logs(tail=10)
        words = log.decode(errors="replace").strip()
    raise EffectError(f"{failure} within {_BOOT_SECONDS} seconds ({printed}). Last words:\n{words}")


def _read(container: Container, path: str) -> str | None:
    """Return a small file of a container, running or not, or None where there is none."""
    try:
        chunks, _ = container.get_archive(path)
    except NotFound:
        return None
    with tarfile.open(fileobj=io.BytesIO(b"".join(chunks))) as archive:
        member = archive.extractfile(archive.getmembers()[0])
        return member.read().decode() if member else None


def _archive(files: Mapping[str, tuple[str, int]]) -> bytes:
    """Return a tar archive of `{path: (text, mode)}`, owned by root."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for path, (text, mode) in files.items():
            member = tarfile.TarInfo(path)
            content = text.encode()
            member.size, member.mode, member.mtime = len(content), mode, int(time.time())
            archive.addfile(member, io.BytesIO(content))
    return buffer.getvalue()


@contextlib.contextmanager
def _explained(purpose: str) -> Iterator[None]:
    """Turn the Docker engine's errors into `EffectError`s that say what was tried and what to do."""
    try:
        yield
    except ImageNotFound as error:
        raise EffectError(f"Cannot {purpose}: {error.explanation}. Run `python -m emulator images`.") from error
    except (DockerException, OSError) as error:
        reason = getattr(error, "explanation", None) or error
        raise EffectError(f"Cannot {purpose}: {reason}") from error
