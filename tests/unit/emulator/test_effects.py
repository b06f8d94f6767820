import io
import tarfile
import threading
import types
from unittest import mock

import pytest
from docker.errors import APIError, ImageNotFound
from requests.exceptions import ReadTimeout

from emulator import effects, sql_engines, sql_instance


def test_known_database_flags_pass_and_others_are_named():
    flags = [{"name": "max_connections", "value": "50"}, {"name": "cloudsql.iam_authentication", "value": "on"}]
    assert effects.check_database_flags({"databaseFlags": flags}, "POSTGRES_17") == {
        "max_connections": "50",
        "cloudsql.iam_authentication": "on",
    }
    assert effects.check_database_flags({}, "POSTGRES_17") == {}
    with pytest.raises(effects.EffectError, match=r"Invalid flag name: data_directory\."):
        effects.check_database_flags(
            {"databaseFlags": [{"name": "data_directory", "value": "/"}, *flags]}, "POSTGRES_17"
        )
    with pytest.raises(effects.EffectError, match=r"Invalid flag name: cloudsql.iam_authentication\."):
        effects.check_database_flags({"databaseFlags": flags}, "MYSQL_8_4")


class RecordingEffects(effects.DockerEffects):
    """Keeps what would be run in a database server."""

    def __init__(self, engine):
        self.engine = sql_engines.ENGINES[engine]
        self.scripts = []

    def _sql(self, instance, script_of):
        self.scripts.append((instance, *script_of(self.engine)))


@pytest.mark.parametrize(
    ("user", "postgres", "mysql"),
    [
        ({"type": "BUILT_IN"}, "cloudsqlsuperuser", "cloudsqlsuperuser"),
        ({}, "cloudsqlsuperuser", "cloudsqlsuperuser"),
        ({"databaseRoles": ["reader"]}, "reader", "reader"),
        ({"type": "CLOUD_IAM_SERVICE_ACCOUNT"}, "cloudsqliamserviceaccount", ""),
        ({"type": "CLOUD_IAM_USER"}, "cloudsqliamuser", ""),
        (
            {"type": "CLOUD_IAM_SERVICE_ACCOUNT", "databaseRoles": ["cloudsqlsuperuser"]},
            "cloudsqlsuperuser,cloudsqliamserviceaccount",
            "cloudsqlsuperuser",
        ),
    ],
)
def test_new_users_get_cloud_sqls_roles(user, postgres, mysql):
    for engine, roles in (("POSTGRES", postgres), ("MYSQL", mysql)):
        recording = RecordingEffects(engine)
        recording.create_sql_user("mlflow", {"name": "u", **user})
        (instance, _, values) = recording.scripts[0]
        assert (instance, values["name"], values["roles"]) == ("mlflow", "u", roles)


@pytest.mark.parametrize("engine", ["POSTGRES", "MYSQL"])
def test_roles_that_are_not_given_stay(engine):
    recording = RecordingEffects(engine)
    recording.update_sql_user("mlflow", {"name": "u", "password": "pencil"})
    assert "REVOKE" not in recording.scripts[0][1]


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (ImageNotFound("x", explanation="No such image: mlflow-gcp/vm:debian-11"), "python -m emulator images"),
        (APIError("x", explanation="driver failed: port is already allocated"), "Cannot try: driver failed: port"),
        (ReadTimeout("too slow"), "Cannot try: too slow"),
    ],
)
def test_the_engines_errors_become_ours(error, words):
    with pytest.raises(effects.EffectError, match=words), effects._explained("try"):
        raise error


def test_files_for_containers_belong_to_root_and_keep_their_modes():
    with tarfile.open(fileobj=io.BytesIO(effects._archive({"etc/key": ("secret", 0o600)}))) as archive:
        member = archive.getmember("etc/key")
        assert (member.uid, member.gid, member.mode) == (0, 0, 0o600)
        assert archive.extractfile(member).read() == b"secret"


class FakeContainer:
    def __init__(self, *results):
        self.results = list(results)

    def exec_run(self, command):
        del command
        result = self.results.pop(0)
        if isinstance(result, Exception):
            raise result
        return type("Result", (), {"exit_code": result[0], "output": result[1]})

    def logs(self, tail):
        return b"Failed to mount cgroup"


class PlacedEffects(effects.DockerEffects):
    """Keeps by what names the containers would be found in the Docker network."""

    def __init__(self):
        self._placing = threading.Lock()
        self._docker = mock.MagicMock()
        self.aliases = []

    def _find(self, name):
        del name

    def _create(self, name, image, address, aliases=(), **options):
        del name, image, address, options
        self.aliases.append(list(aliases))
        return mock.MagicMock()

    def _wait_for_database(self, container, name):
        del container, name

    def _begin_log(self, container):
        del container


def test_an_instance_is_found_by_its_dns_name_where_it_has_one(monkeypatch):
    monkeypatch.setattr(effects, "_read", lambda *_: None)
    placed, instance = PlacedEffects(), {"name": "i", "databaseVersion": "POSTGRES_17"}
    placed.create_sql_instance("p", instance, "", "", "")
    placed.create_sql_instance("p", {**instance, "dnsName": "a.b.europe-west1.sql.goog."}, "", "", "")
    assert placed.aliases == [[], ["a.b.europe-west1.sql.goog"]]


def test_waiting_outlives_a_restart(monkeypatch):
    monkeypatch.setattr(effects.time, "sleep", lambda _: None)
    container = FakeContainer(APIError("not running"), (1, b"starting\n"), (1, b"degraded\n"), (0, b"unused"))
    effects._wait(container, "no", ["systemctl"], effects._booted)
    assert len(container.results) == 1


def test_waiting_ends_with_the_containers_last_words(monkeypatch):
    clock = iter(range(0, 1000, 40))
    monkeypatch.setattr(effects.time, "sleep", lambda _: None)
    monkeypatch.setattr(effects.time, "monotonic", lambda: next(clock))
    container = FakeContainer(*[(1, b"starting")] * 10)
    with pytest.raises(
        effects.EffectError, match=r"(?s)The VM v did not boot within 90 seconds.*Failed to mount cgroup"
    ):
        effects._wait(container, "The VM v did not boot", ["systemctl"], effects._booted)


def test_no_effects_offers_what_docker_effects_offers():
    public = {name for name in dir(effects.DockerEffects) if not name.startswith("_")}
    assert public == {name for name in dir(effects.NoEffects) if not name.startswith("_")}
    nothing = effects.NoEffects()
    assert nothing.create_instance("p", "z", {"name": "v"}, "198.18.0.16", "debian-12") == {"ip": "198.18.0.16"}
    flags = [{"name": "nonsense", "value": "1"}]
    with pytest.raises(effects.EffectError):
        nothing.create_sql_instance(
            "p", {"name": "i", "databaseVersion": "POSTGRES_17", "settings": {"databaseFlags": flags}}, "", "", ""
        )


def test_database_flags_reach_the_servers_command_line(tmp_path, monkeypatch):
    monkeypatch.setattr(sql_instance, "SOCKET_DIRECTORY", tmp_path)
    command = sql_instance.postgres_command(
        {"max_connections": "50", sql_instance.IAM_FLAG: "on", "ssl": "off"}, archived=True
    )
    assert "max_connections=50" in command
    assert not [option for option in command if option.startswith(sql_instance.IAM_FLAG)]
    assert "ssl=on" in command  # what the instance is stays the emulator's
    assert "ssl=off" not in command
    assert "archive_mode=on" in command
    assert "archive_mode=off" in sql_instance.postgres_command({}, archived=False)
    rules = [line.split() for line in (tmp_path / "pg_hba.conf").read_text().splitlines() if line[0] != "#"]
    assert [rule for rule in rules if rule[0] == "host" and rule[-1] != "reject"] == [
        ["host", "all", "all", "127.0.0.1/32", "scram-sha-256"]
    ]
    assert {rule[2] for rule in rules if rule[-1] == "trust"} == {
        "cloudsqladmin",
        "+cloudsqliamserviceaccount",
        "+cloudsqliamuser",
    }


def test_a_server_goes_on_when_its_backup_fails(monkeypatch):
    done = []
    server = types.SimpleNamespace(pause=lambda: done.append("pause"), unpause=lambda: done.append("unpause"))
    docker = effects.DockerEffects.__new__(effects.DockerEffects)
    docker._docker = types.SimpleNamespace(volumes=types.SimpleNamespace(create=lambda *_, **__: None))

    def fail(*_):
        done.append("copy")
        raise OSError("no space")

    monkeypatch.setattr(docker, "_existing", lambda _: server)
    monkeypatch.setattr(docker, "_copy_volume", fail)
    with pytest.raises(effects.EffectError, match="back up the Cloud SQL instance mlflow: no space"):
        docker.back_up_sql_instance("mlflow", "1")
    assert done == ["pause", "copy", "unpause"]
