import pytest
from testinfra.host import Host

PASSWORD = "/etc/credstore/mlflow.admin-password"
SECRET = "/srv/cloud/secrets/admin"
VALUES = {PASSWORD: "admin-value-7f3a", "/etc/credstore/mlflow.flask-secret-key": "flask-value-91d2"}


@pytest.mark.parametrize("path", VALUES)
def test_the_value_is_for_root_alone(host: Host, path: str) -> None:
    file = host.file(path)
    assert file.content_string == VALUES[path]
    assert (file.user, file.group, file.mode) == ("root", "root", 0o600)
    directory = host.file("/etc/credstore")
    assert (directory.user, directory.mode) == ("root", 0o700)


def test_a_rotation_arrives_and_stays_out_of_the_output(host: Host, converge) -> None:
    before = host.file(PASSWORD).mtime
    host.check_output(f"printf rotated-value-5c3e >{SECRET}")
    try:
        check = converge("--check", "--diff", "-vvv")
        kept = host.file(PASSWORD).content_string
        real = converge("--diff", "-vvv")
    finally:
        host.check_output(f"printf %s {VALUES[PASSWORD]} >{SECRET}")
    assert kept == VALUES[PASSWORD]
    assert host.file(PASSWORD).content_string == "rotated-value-5c3e"
    assert host.file(PASSWORD).mtime > before
    for done in (check, real):
        assert "changed=1 " in done.stdout
        assert "+changed" in done.stdout
        assert not [value for value in ("rotated-value-5c3e", *VALUES.values()) if value in done.stdout + done.stderr]


def test_health_compares_with_the_latest_version(host: Host, converge) -> None:
    host.check_output(f"printf tampered-3b1c >{PASSWORD}")
    done = converge("-vvv", entry_point="health")
    assert done.returncode != 0
    assert f"{PASSWORD} does not hold the latest version" in done.stdout
    assert "tampered-3b1c" not in done.stdout
    assert converge().returncode == 0
    assert host.file(PASSWORD).content_string == VALUES[PASSWORD]


def test_the_file_of_a_secret_that_is_gone_goes(host: Host, converge) -> None:
    path = "/etc/credstore/mlflow.user-eve-password"
    host.check_output(f"touch {path}")
    assert "changed=1 " in converge(server_secrets_absent_paths=[path]).stdout
    assert not host.file(path).exists
    assert host.file(PASSWORD).exists


def test_a_missing_role_names_the_secret_the_account_and_the_fix(converge) -> None:
    files = [
        {"project": "demo-project", "secret": name, "path": f"/etc/credstore/{name}"} for name in ("denied", "absent")
    ]
    done = converge(server_secrets_files=files)
    assert done.returncode != 0
    assert "projects/demo-project/secrets/denied" in done.stdout
    assert "roles/secretmanager.secretAccessor" in done.stdout
    assert "server@demo-project.iam.gserviceaccount.com" in done.stdout
    assert "projects/demo-project/secrets/absent" in done.stdout
