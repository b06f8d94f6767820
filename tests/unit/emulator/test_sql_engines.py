import base64
import hashlib

import pytest

from emulator import sql_engines

MYSQL, POSTGRES = sql_engines.ENGINES["MYSQL"], sql_engines.ENGINES["POSTGRES"]
IAM = {"name": "vm", "type": "CLOUD_IAM_SERVICE_ACCOUNT"}


def test_scram_verifier_is_the_one_of_rfc_7677():
    salt = base64.b64decode("W22ZaJ0SNY7soEsUEjb6gQ==")
    verifier = sql_engines.scram_verifier("pencil", salt)
    assert verifier == (
        "SCRAM-SHA-256$4096:W22ZaJ0SNY7soEsUEjb6gQ==$"
        "WG5d8oPm3OtcPnkdi4Uo7BkeZkBFzpcXkuLmtbsT4qY=:wfPLwcE6nTWhTAmQ7tl2KeoiWGPlZqQxSrmfPwDl2dU="
    )
    assert sql_engines.scram_verifier("pencil") != sql_engines.scram_verifier("pencil")
    assert hashlib.sha256(verifier.encode()).hexdigest() != hashlib.sha256(b"pencil").hexdigest()


def test_native_verifier_is_what_mysql_calls_password():
    assert sql_engines.native_verifier("mypass") == "*6C8989366EAF75BB670AD8EA7A7FC1176A95CEF4"
    assert sql_engines.native_verifier(None) == "invalid"


@pytest.mark.parametrize(
    ("value", "quoted"), [("plain", "'plain'"), ("it's", r"'it\'s'"), ("a\\b", r"'a\\b'"), ("a\n\\q", r"'a\n\\q'")]
)
def test_values_cannot_leave_their_quotes(value, quoted):
    assert sql_engines.quoted(value) == quoted
    assert POSTGRES.text("", {"name": value}).startswith(f"\\set name {quoted}\n")
    assert MYSQL.text("", {"name": value}).startswith(f"SET @name = {quoted};\n")


@pytest.mark.parametrize("engine", [POSTGRES, MYSQL], ids=["POSTGRES", "MYSQL"])
def test_passwords_reach_the_server_as_verifiers_only(engine):
    text = engine.text(*engine.make_user({"name": "u", "password": "pencil"}))
    assert "pencil" not in text
    assert ("SCRAM-SHA-256$" if engine is POSTGRES else sql_engines.native_verifier("pencil")) in text


def test_mysqls_iam_users_have_no_password_but_the_front():
    script, values = MYSQL.make_user({**IAM, "password": "pencil"})
    assert values["login"] == "unix_socket AS 'mysql'"
    assert "ALTER USER" not in script


def test_mysqls_administrator_is_another_user_of_the_system_than_the_front():
    assert MYSQL.user == "root"
    assert "--user=cloudsqladmin" in MYSQL.client


@pytest.mark.parametrize(("version", "engine"), [("POSTGRES_17", "POSTGRES"), ("MYSQL_8_4", "MYSQL")])
def test_the_version_names_the_engine(version, engine):
    assert sql_engines.of(version) == engine
