from __future__ import annotations

import base64

import pytest
import requests
from ansible_collections.mlops.mlflow_gcp.plugins.module_utils.report import PartialError
from ansible_collections.mlops.mlflow_gcp.plugins.module_utils.session import CloudError
from ansible_collections.mlops.mlflow_gcp.plugins.module_utils.sql_user import database_name, ensure_users

USERS = "/v1/projects/demo/instances/i/users"
ACCOUNT = "Server@demo.iam.gserviceaccount.com"


@pytest.fixture
def users(google):
    """Users by name, as the instance keeps them."""
    kept: dict[str, dict] = {}

    def answer(call):
        if call.verb == "GET":
            return {"items": [{k: v for k, v in user.items() if k != "password"} for user in kept.values()]}
        if call.verb == "POST":
            kept[call.body["name"]] = dict(call.body)
        elif call.verb == "PUT":
            assert call.query.get("revokeExistingRoles") == ("true" if "databaseRoles" in call.query else None)
            roles = {"databaseRoles": call.query["databaseRoles"]} if "databaseRoles" in call.query else {}
            kept[call.query["name"]] |= {**call.body, **roles}
        else:
            del kept[call.query["name"]]
        return {"name": "o", "status": "DONE"}

    google.special["/users$"] = answer
    return kept


def user(name="u", kind="BUILT_IN", **options):
    defaults = {"state": "present", "update_password": "on_create", "password_secret_version": "latest"}
    return {"name": name, "type": kind, **defaults, **options}


def ensure(cloud, *wanted):
    return ensure_users(cloud, "i", "POSTGRES", list(wanted))


def test_an_iam_user_has_its_short_name_and_no_password(cloud, users):
    wanted = user(ACCOUNT, "CLOUD_IAM_SERVICE_ACCOUNT", database_roles=["cloudsqlsuperuser"])
    result = ensure(cloud, wanted)
    assert users == {
        "server@demo.iam": {
            "name": "server@demo.iam",
            "type": "CLOUD_IAM_SERVICE_ACCOUNT",
            "databaseRoles": ["cloudsqlsuperuser"],
        }
    }
    assert result["users"][0]["name"] == "server@demo.iam"
    assert ensure(cloud, wanted)["changed"] is False


def test_names_of_built_in_users_are_left_as_they_are():
    assert database_name("U.gserviceaccount.com", "BUILT_IN", "POSTGRES") == "U.gserviceaccount.com"
    assert database_name("Somebody@Example.com", "CLOUD_IAM_USER", "POSTGRES") == "somebody@example.com"


def test_a_password_is_set_once_and_never_shown(cloud, users):
    result = ensure(cloud, user(password="hunter2"))
    assert users["u"]["password"] == "hunter2"
    assert "hunter2" not in repr(result)
    assert ensure(cloud, user(password="other"))["changed"] is False
    assert users["u"]["password"] == "hunter2"


def test_a_password_is_set_again_when_asked(cloud, users):
    users["u"] = {"name": "u", "password": "old"}
    result = ensure(cloud, user(password="hunter2", update_password="always"))
    assert users["u"]["password"] == "hunter2"
    assert result["users"][0]["action"] == "update"
    assert "hunter2" not in repr(result)


def test_a_password_comes_from_secret_manager_only_when_needed(cloud, google, users):
    google.special[":access$"] = lambda _: {"payload": {"data": base64.b64encode(b"hunter2").decode()}}
    wanted = user(password_secret="the-secret")
    ensure(cloud, wanted)
    assert users["u"]["password"] == "hunter2"
    assert google.calls[1].path.endswith("/secrets/the-secret/versions/latest:access")
    ensure(cloud, {**wanted, "update_password": "always", "password_secret_version": "3"})
    assert "/secrets/the-secret/versions/3:access" in " ".join(call.path for call in google.calls)
    google.calls.clear()
    ensure(cloud, wanted)
    assert [call.path for call in google.calls] == [USERS]


def test_roles_are_exact_when_given_and_else_left_alone(cloud, users):
    users["u"] = {"name": "u", "type": "BUILT_IN", "databaseRoles": ["a", "b"]}
    assert ensure(cloud, user())["changed"] is False
    assert ensure(cloud, user(database_roles=["b", "a"]))["changed"] is False
    result = ensure(cloud, user(database_roles=["c"]))
    assert result["users"][0]["differences"] == [{"field": "databaseRoles", "before": ["a", "b"], "after": ["c"]}]
    assert users["u"]["databaseRoles"] == ["c"]
    assert "password" not in users["u"]


IAM_ROLES = ["cloudsqliamuser", "cloudsqliamserviceaccount", "cloudsqliamgroupuser", "cloudsqliamgroupserviceaccount"]


@pytest.mark.parametrize("own", IAM_ROLES)
def test_the_roles_that_google_gives_by_itself_are_no_difference_and_stay(cloud, users, own):
    wanted = user(ACCOUNT, "CLOUD_IAM_SERVICE_ACCOUNT", database_roles=["a"])
    listed = {"name": "server@demo.iam", "type": "CLOUD_IAM_SERVICE_ACCOUNT", "databaseRoles": ["a", own]}
    users["server@demo.iam"] = listed
    assert ensure(cloud, wanted)["changed"] is False
    assert ensure(cloud, {**wanted, "database_roles": ["a", own]})["changed"] is False
    listed["databaseRoles"] = ["b", own]
    [member] = ensure(cloud, wanted)["users"]
    assert member["differences"] == [{"field": "databaseRoles", "before": ["b", own], "after": ["a", own]}]
    assert listed["databaseRoles"] == ["a", own]
    listed["databaseRoles"] = ["a"]
    assert ensure(cloud, {**wanted, "database_roles": ["a", own]})["changed"] is True


def test_the_roles_that_the_list_leaves_out_are_unknown_of_an_iam_user_alone(cloud, google, users):
    users["server@demo.iam"] = {"name": "server@demo.iam", "type": "CLOUD_IAM_SERVICE_ACCOUNT"}
    users["u"] = {"name": "u", "type": "BUILT_IN"}
    account = user(ACCOUNT, "CLOUD_IAM_SERVICE_ACCOUNT", database_roles=["a"])
    assert ensure(cloud, account)["changed"] is False
    assert google.written() == []
    assert ensure(cloud, user(database_roles=["a"]))["changed"] is True
    # An empty list says that there are none.
    users["server@demo.iam"]["databaseRoles"] = []
    assert ensure(cloud, account)["changed"] is True


def test_a_user_is_deleted_and_then_left_alone(cloud, users):
    users["u"] = {"name": "u"}
    assert ensure(cloud, user(state="absent"))["users"][0]["action"] == "delete"
    assert users == {}
    assert ensure(cloud, user(state="absent"))["changed"] is False


def test_another_type_is_refused(cloud, users):
    users["u@x.y"] = {"name": "u@x.y", "type": "BUILT_IN"}
    with pytest.raises(PartialError, match=r"u@x.y: is BUILT_IN, wanted CLOUD_IAM_USER"):
        ensure(cloud, user("u@x.y", "CLOUD_IAM_USER"))


def test_one_failure_leaves_the_others_finished(cloud, users):
    with pytest.raises(PartialError, match="Cloud SQL user a: a new built-in user needs password") as raised:
        ensure(cloud, user("a"), user("b", password="x"))
    assert list(users) == ["b"]
    assert [member["name"] for member in raised.value.result["users"]] == ["b"]


def test_a_password_of_an_iam_user_is_refused_before_the_first_call(cloud, google):
    with pytest.raises(CloudError, match="an IAM user has no password"):
        ensure(cloud, user(ACCOUNT, "CLOUD_IAM_SERVICE_ACCOUNT", password="x"))
    assert google.calls == []


def test_check_mode_predicts_and_writes_nothing(checking, google, users):
    users["gone"] = {"name": "gone"}
    result = ensure(checking, user(password="x"), user("gone", state="absent"))
    assert [member["action"] for member in result["users"]] == ["create", "delete"]
    assert google.written() == []


def test_check_mode_takes_a_missing_instance_for_empty(checking):
    assert ensure(checking, user(password_secret="missing"))["users"][0]["action"] == "create"
    assert checking.warnings[0].startswith("Cloud SQL instance i has no users yet")


def test_a_missing_instance_fails_outside_check_mode(cloud):
    with pytest.raises(CloudError, match="Listing the users of Cloud SQL instance i"):
        ensure(cloud, user(password="x"))


def test_an_operation_in_progress_is_waited_for(cloud, google, users, fault):
    google.faults.append(fault("POST", "/users$", 409, "operationInProgress", times=5))
    ensure(cloud, user(password="x"))
    assert list(users) == ["u"]


def test_a_creation_without_an_answer_is_looked_for(cloud, google, users, fault):
    google.faults.append(fault("POST", "/users$", raises=requests.ConnectionError("reset"), lands=True))
    assert ensure(cloud, user(password="x"))["users"][0]["action"] == "create"
    assert list(users) == ["u"]
    assert len(google.written()) == 1


@pytest.fixture
def mysql_users(google):
    """Users by the name a request gives, as a MySQL instance keeps them."""
    kept: dict[str, dict] = {}

    def answer(call):
        if call.verb == "GET":
            return {"items": [{k: v for k, v in user.items() if k != "password"} for user in kept.values()]}
        if call.verb == "POST" and "@" in call.body["name"]:
            assert not {"host", "password"} & call.body.keys()
            address = call.body["name"]
            identity = {"name": address.partition("@")[0], "host": "%", "iamEmail": address}
            kept[address] = {"databaseRoles": [], **call.body, **identity}
        elif call.verb == "POST":
            assert call.body["host"] == "%"
            kept[call.body["name"]] = dict(call.body)
        else:
            assert call.query["host"] == "%"
            if call.verb == "PUT":
                kept[call.query["name"]]["databaseRoles"] = call.query["databaseRoles"]
            else:
                del kept[call.query["name"]]
        return {"name": "o", "status": "DONE"}

    google.special["/users$"] = answer
    return kept


def ensure_in_mysql(cloud, *wanted):
    return ensure_users(cloud, "i", "MYSQL", list(wanted))


def test_mysqls_iam_user_is_asked_for_by_address_and_known_by_its_beginning(cloud, google, mysql_users):
    wanted = user(ACCOUNT, "CLOUD_IAM_SERVICE_ACCOUNT", database_roles=["cloudsqlsuperuser"])
    result = ensure_in_mysql(cloud, wanted)
    assert list(mysql_users) == [ACCOUNT.lower()]
    assert result["users"][0]["name"] == "server"
    google.calls.clear()
    assert ensure_in_mysql(cloud, wanted)["changed"] is False
    assert [call.path for call in google.calls] == [USERS]


def test_mysqls_users_are_changed_and_deleted_by_name_and_host(cloud, mysql_users):
    account = user(ACCOUNT, "CLOUD_IAM_SERVICE_ACCOUNT")
    ensure_in_mysql(cloud, account, user(password="hunter2"))
    ensure_in_mysql(cloud, {**account, "database_roles": ["a"]}, user(database_roles=["b"]))
    assert [kept["databaseRoles"] for kept in mysql_users.values()] == [["a"], ["b"]]
    ensure_in_mysql(cloud, {**account, "state": "absent"}, user(state="absent"))
    assert mysql_users == {}


def test_a_user_of_some_host_is_not_the_user_of_any_host(cloud, mysql_users):
    mysql_users["u of one host"] = {"name": "u", "host": "10.0.0.1", "type": "BUILT_IN"}
    assert ensure_in_mysql(cloud, user(password="hunter2"))["users"][0]["action"] == "create"


def test_another_account_of_the_same_short_name_is_refused(cloud, google, mysql_users):
    mysql_users["it"] = {
        "name": "server",
        "host": "%",
        "type": "CLOUD_IAM_SERVICE_ACCOUNT",
        "iamEmail": "server@other.iam.gserviceaccount.com",
    }
    with pytest.raises(PartialError, match=r"is server@other\.iam\.gserviceaccount\.com, wanted Server@demo\.iam"):
        ensure_in_mysql(cloud, user(ACCOUNT, "CLOUD_IAM_SERVICE_ACCOUNT"))
    assert google.written() == []


def test_a_short_name_is_not_enough_for_mysql(cloud, google):
    with pytest.raises(CloudError, match="MySQL needs an IAM user's whole address"):
        ensure_in_mysql(cloud, user("server", "CLOUD_IAM_SERVICE_ACCOUNT"))
    assert google.calls == []
