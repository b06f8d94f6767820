from emulator import mysql_instance


def test_database_flags_reach_the_servers_command_line(tmp_path, monkeypatch):
    monkeypatch.setattr(mysql_instance, "SOCKET_DIRECTORY", tmp_path)
    flags = {"max_connections": "50", mysql_instance.IAM_FLAG: "on", "bind_address": "::"}
    command = mysql_instance.mariadb_command(flags)
    assert "--max_connections=50" in command
    assert not [option for option in command if "iam" in option]
    # What the instance is stays the emulator's: clients come by the front alone.
    assert "--bind_address=127.0.0.1" in command
    assert "--bind_address=::" not in command


def test_nobody_is_let_in_by_name_alone(tmp_path, monkeypatch):
    monkeypatch.setattr(mysql_instance, "SOCKET_DIRECTORY", tmp_path)
    mysql_instance.mariadb_command({})
    made = [line for line in (tmp_path / "users.sql").read_text().splitlines() if line.startswith("CREATE USER")]
    assert len(made) == 2
    # The front runs as mysql, the administrator's client as root.
    assert made[0].endswith("cloudsqladmin@localhost IDENTIFIED VIA unix_socket AS 'root';")
    assert made[1].endswith("root@'%' IDENTIFIED VIA mysql_native_password USING 'invalid';")
