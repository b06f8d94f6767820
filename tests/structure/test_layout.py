"""The rules of the layout: where a line goes, and how a setting flows."""

import pathlib
import re

import pytest
import yaml

ROOT = pathlib.Path(__file__).resolve().parents[2]
ROLES = sorted(path for path in (ROOT / "roles").iterdir() if path.is_dir())
SERVER_ROLES = [role for role in ROLES if (ROOT / "molecule" / role.name).is_dir()]
MODULES = sorted((ROOT / "plugins/modules").glob("*.py"))
PLAYBOOKS = sorted((ROOT / "playbooks").glob("*.yml"))


def load(path: pathlib.Path):
    return yaml.safe_load(path.read_text()) or {}


def names(paths):
    return [path.stem for path in paths]


@pytest.mark.parametrize("role", ROLES, ids=names(ROLES))
def test_defaults_and_argument_specs_have_the_same_keys(role):
    defaults = load(role / "defaults/main.yml")
    entry_points = load(role / "meta/argument_specs.yml")["argument_specs"].values()
    options = {name: option for entry_point in entry_points for name, option in entry_point.get("options", {}).items()}
    assert set(defaults) <= set(options), "a default without a specification"
    without_default = {name for name, option in options.items() if name not in defaults}
    assert all(options[name].get("required") for name in without_default), "neither required nor given a default"


@pytest.mark.parametrize("role", ROLES, ids=names(ROLES))
def test_every_option_is_described_and_typed(role):
    for entry_point, spec in load(role / "meta/argument_specs.yml")["argument_specs"].items():
        assert spec.get("short_description"), entry_point
        for name, option in spec.get("options", {}).items():
            assert option.get("description"), name
            assert option.get("type"), name


@pytest.mark.parametrize("role", ROLES, ids=names(ROLES))
def test_a_role_names_only_its_own_variables(role):
    variables = [
        *load(role / "defaults/main.yml"),
        *load(role / "vars/main.yml" if (role / "vars/main.yml").exists() else role / "defaults/main.yml"),
    ]
    assert [name for name in variables if not name.removeprefix("__").startswith(f"{role.name}_")] == []


@pytest.mark.parametrize("role", ROLES, ids=names(ROLES))
def test_a_role_reads_no_one_elses_variables(role):
    others = "|".join(other.name for other in ROLES if not role.name.startswith(other.name))
    foreign = re.compile(rf"(?<![\w.$/-])(platform_\w+|hostvars\b|groups\[|groups\.|(?:{others})_\w+(?=[\s|}}\])]))")
    for path in [*role.glob("tasks/*.yml"), *role.glob("defaults/*.yml"), *role.glob("handlers/*.yml")]:
        expressions = re.findall(r"\{\{.*?\}\}|(?:when|that|loop|until):.*", path.read_text())
        found = [
            match for expression in expressions for match in foreign.findall(re.sub(r"'[^']*'|__\w+", "", expression))
        ]
        assert found == [], path


@pytest.mark.parametrize("role", SERVER_ROLES, ids=names(SERVER_ROLES))
def test_server_roles_take_their_steps_in_order(role):
    steps = re.findall(
        r"(?:include|import)_tasks:\s*(?:\n\s+file:\s*)?(\w+)\.yml", (role / "tasks/main.yml").read_text()
    )
    # What is kept in a service, such as its users, and what is done with it need it running.
    known = ["preflight", "install", "configure", "service", "users", "gc"]
    assert steps == [step for step in known if step in steps]
    assert steps
    assert (role / "tasks/health.yml").exists()


def test_what_is_provisioned_is_destroyed_the_other_way_round():
    provisioned = [role["role"] for role in load(ROOT / "playbooks/provision.yml")[0]["roles"]]
    _, *plays = load(ROOT / "playbooks/destroy.yml")
    named, removed = ([f"mlops.mlflow_gcp.{role}" for role in play["tasks"][0]["loop"]] for play in plays)
    # Services stay enabled: others may use them.
    assert set(named) == {*provisioned} - {"mlops.mlflow_gcp.gcp_project"}
    assert removed == named
    assert named[0] == provisioned[-1]


def test_group_vars_has_one_file_per_role_and_the_platform():
    wiring = set(names((ROOT / "group_vars/all").glob("*.yml")))
    assert wiring - {"platform"} <= set(names(ROLES))


def test_wiring_flows_one_way():
    for path in (ROOT / "group_vars/all").glob("*.yml"):
        wrong = [name for name in load(path) if not name.startswith(f"{path.stem}_")]
        assert wrong == [], path


@pytest.mark.parametrize("playbook", PLAYBOOKS, ids=names(PLAYBOOKS))
def test_playbooks_only_order_hosts_and_roles(playbook):
    for play in load(playbook):
        tasks = [*play.get("tasks", []), *play.get("pre_tasks", []), *play.get("post_tasks", [])]
        allowed = {"ansible.builtin.import_role", "ansible.builtin.include_role", "ansible.builtin.meta"}
        logic = [
            task for task in tasks if not allowed & set(task) and not any(key.startswith("mlops.") for key in task)
        ]
        assert logic == [], playbook


@pytest.mark.parametrize("playbook", ["configure", "upgrade", "rollback", "rotate"])
def test_what_serves_is_replaced_on_one_server_after_the_other(playbook):
    plays = [play for play in load(ROOT / f"playbooks/{playbook}.yml") if play.get("hosts", "").startswith("mlflow")]
    limits = [(play.get("serial"), play.get("max_fail_percentage"), play.get("any_errors_fatal")) for play in plays]
    # What comes before and after it starts and stops nothing.
    assert limits.count((1, 0, True)) == 1


@pytest.mark.parametrize("module", MODULES, ids=names(MODULES))
def test_modules_are_documented(module):
    text = module.read_text()
    for block in ("DOCUMENTATION", "EXAMPLES", "RETURN"):
        assert re.search(rf"^{block} = ", text, re.MULTILINE), block
    assert "supports_check_mode=True" in text or module.stem.endswith("_info") or "check_mode" in text


@pytest.mark.parametrize(
    ("link", "target"),
    [
        (".collections/ansible_collections/mlops/mlflow_gcp", "."),
        ("playbooks/group_vars", "group_vars"),
        ("tests/integration/group_vars", "group_vars"),
        ("inventories/staging/group_vars/mlflow", "inventories/prod/group_vars/mlflow"),
    ],
)
def test_links_are_links(link, target):
    assert (ROOT / link).is_symlink()
    assert (ROOT / link).resolve() == (ROOT / target).resolve()


def test_requirements_name_the_versions_that_the_lock_carries():
    import ansible_collections

    places = [pathlib.Path(place) for place in ansible_collections.__path__]
    for collection in load(ROOT / "requirements.yml")["collections"]:
        manifest = next(
            place / collection["name"].replace(".", "/") / "MANIFEST.json"
            for place in places
            if (place / collection["name"].replace(".", "/")).is_dir()
        )
        assert yaml.safe_load(manifest.read_text())["collection_info"]["version"] == collection["version"], collection


TEXT = [
    path
    for path in ROOT.rglob("*")
    if path.is_file()
    and path.suffix in {".yml", ".py", ".md", ".j2", ".sh", ".toml", ".cfg", ""}
    and not {".git", ".venv", ".cache", ".collections", ".emulator", ".ansible", "build"}
    & set(path.relative_to(ROOT).parts)
]


def test_one_spelling_of_the_yaml_suffix():
    assert [path for path in ROOT.glob("[!.]*/**/*.yaml") if ".venv" not in path.parts] == []


def test_failures_are_not_hidden():
    hidden = re.compile(r"^\s*(failed_when: false|ignore_errors: (true|yes))", re.MULTILINE)
    assert [path for path in TEXT if path.suffix == ".yml" and hidden.search(path.read_text())] == []
