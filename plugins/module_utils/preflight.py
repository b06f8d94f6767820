"""What the inventory must satisfy before anything is made, as pure functions.

Every function returns a list of `Problem`; an empty list means nothing is wrong. Nothing here reads the
environment or talks to the cloud: `preflight_cloud` has what it takes to ask there.
"""

from __future__ import annotations

import contextlib
import difflib
import ipaddress
import re
import ssl
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import yaml
from ansible_collections.mlops.mlflow_gcp.plugins.module_utils import mlflow_users

LOWEST_MLFLOW_VERSION = (3, 17, 0)
LOWEST_POSTGRES_VERSION = 17
MYSQL_VERSION = "MYSQL_8_4"
VM_IMAGE_FAMILIES = ("debian-12", "debian-13")
PROFILES = ("small", "medium", "large", "custom")
ARTIFACT_ACCESSES = ("server", "direct")
SQL_AVAILABILITY_TYPES = ("ZONAL", "REGIONAL")
SQL_LOGINS = ("iam", "password")
AUTHENTICATIONS = ("basic", "iap", "oidc", "none")
# Addresses that strangers do not have, and the widest range of others that may be somebody's own.
OWN_RANGES = tuple(map(ipaddress.IPv4Network, ("10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16")))
WIDEST_RANGE = 16
LOG_DESTINATIONS = ("bucket", "dataset")
# From, to, and what is usual.
WHOLE_NUMBERS = {
    "platform_disk_size_gib": (20, 65536, 50),
    "platform_mlflow_workers": (1, 64, 2),
    "platform_sql_pool_size": (2, 100, 5),
    "platform_sql_connections": (25, 262143, 100),
    "platform_request_timeout_seconds": (60, 86400, 3600),
}

# What provisioning needs and only a project can give, by the predefined role that has it:
# https://cloud.google.com/iam/docs/roles-permissions
PERMISSIONS = {
    "roles/serviceusage.serviceUsageAdmin": ("serviceusage.services.enable",),
    "roles/resourcemanager.projectIamAdmin": ("resourcemanager.projects.setIamPolicy",),
    "roles/compute.networkAdmin": (
        "compute.addresses.create",
        "compute.addresses.createInternal",
        "compute.forwardingRules.create",
        "compute.forwardingRules.pscCreate",
        "compute.globalAddresses.createInternal",
        "compute.networks.create",
        "compute.routers.create",
        "compute.subnetworks.create",
        "servicenetworking.services.addPeering",
    ),
    "roles/compute.securityAdmin": ("compute.firewalls.create",),
    "roles/compute.instanceAdmin.v1": (
        "compute.disks.create",
        "compute.instances.create",
        "compute.resourcePolicies.create",
    ),
    "roles/iam.serviceAccountAdmin": ("iam.serviceAccounts.create",),
    "roles/iam.serviceAccountUser": ("iam.serviceAccounts.actAs",),
    "roles/iam.roleAdmin": ("iam.roles.create",),
    "roles/storage.admin": ("storage.buckets.create",),
    "roles/cloudsql.admin": ("cloudsql.databases.create", "cloudsql.instances.create", "cloudsql.users.create"),
    "roles/dns.admin": (
        "dns.changes.create",
        "dns.managedZones.create",
        "dns.managedZones.setIamPolicy",
        "dns.resourceRecordSets.create",
    ),
    "roles/secretmanager.admin": ("secretmanager.secrets.create",),
    "roles/logging.configWriter": ("logging.logMetrics.create", "logging.sinks.create"),
    "roles/monitoring.editor": (
        "monitoring.alertPolicies.create",
        "monitoring.dashboards.create",
        "monitoring.notificationChannels.create",
        "monitoring.uptimeCheckConfigs.create",
    ),
    "roles/bigquery.dataOwner": ("bigquery.datasets.create",),
}
_ENDPOINT_PERMISSIONS = (
    "compute.addresses.createInternal",
    "compute.forwardingRules.create",
    "compute.forwardingRules.pscCreate",
    "dns.managedZones.create",
)
# What is not needed while a variable is set (True), is not (False), or has a value.
SPARED_PERMISSIONS = {
    ("platform_existing_network", True): (
        "compute.globalAddresses.createInternal",
        "compute.networks.create",
        "compute.routers.create",
        "servicenetworking.services.addPeering",
    ),
    ("platform_existing_subnetwork", True): ("compute.subnetworks.create",),
    ("platform_existing_bucket", True): ("storage.buckets.create",),
    ("platform_existing_sql_instance", True): ("cloudsql.instances.create", *_ENDPOINT_PERMISSIONS),
    ("platform_existing_service_account", True): ("iam.serviceAccounts.create",),
    ("platform_backup_enabled", False): ("iam.roles.create",),
    ("platform_log_destination", "bucket"): ("bigquery.datasets.create",),
    ("platform_dns_zone", False): ("dns.changes.create", "dns.resourceRecordSets.create"),
    ("platform_sql_private_service_connect_enabled", True): (
        "compute.globalAddresses.createInternal",
        "servicenetworking.services.addPeering",
    ),
    ("platform_sql_private_service_connect_enabled", False): _ENDPOINT_PERMISSIONS,
}
# What a problem about them is named after.
PERMISSIONS_OF = "permissions in platform_project"
PERMISSIONS_OF_KEY = "permissions on platform_kms_key"

# https://cloud.google.com/resource-manager/docs/creating-managing-projects#before_you_begin
_PROJECT = re.compile(r"[a-z][a-z0-9-]{4,28}[a-z0-9]")
_REGION = re.compile(r"[a-z]+-[a-z]+[0-9]+")
# https://cloud.google.com/compute/docs/naming-resources#resource-name-format
_RESOURCE_NAME = re.compile(r"[a-z]([-a-z0-9]{0,61}[a-z0-9])?")
# https://cloud.google.com/storage/docs/buckets#naming
_BUCKET = re.compile(r"[a-z0-9][-_a-z0-9]{1,61}[a-z0-9]")
# https://cloud.google.com/bigquery/docs/datasets#dataset-naming
_DATASET = re.compile(r"[A-Za-z0-9_]{1,1024}")
# https://cloud.google.com/kms/docs/getting-resource-ids
_KEY = re.compile(r"projects/[^/\s]+/locations/([^/\s]+)/keyRings/[\w-]{1,63}/cryptoKeys/[\w-]{1,63}")
_DOMAIN_LABEL = re.compile(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?")
_EMAIL = re.compile(r"[^@\s\"'<>]+@[^@\s\"'<>]+\.[^@\s\"'<>.]+")
# https://cloud.google.com/compute/docs/labeling-resources#requirements
_LABEL_KEY = re.compile(r"[a-z][-_a-z0-9]{0,62}")
_LABEL_VALUE = re.compile(r"[-_a-z0-9]{0,63}")
_MEMBER = re.compile(r"(user|group|serviceAccount):[^@\s]+@[^@\s]+")
# What each name of something that is there already has to look like, and what is usually written in its place.
_EXISTING = {
    "platform_existing_network": _RESOURCE_NAME,
    "platform_existing_subnetwork": _RESOURCE_NAME,
    "platform_existing_bucket": re.compile(r"[a-z0-9][-._a-z0-9]{1,61}[a-z0-9]"),
    "platform_existing_sql_instance": re.compile(r"[a-z][-a-z0-9]{0,96}"),
    "platform_existing_service_account": re.compile(r"[a-z][-a-z0-9]{4,28}[a-z0-9]"),
    "platform_existing_certificate": re.compile(r"[A-Za-z0-9_-]{1,255}"),
    "platform_dns_zone": _RESOURCE_NAME,
    "platform_acme_dns_zone": _RESOURCE_NAME,
}
_EVERYWHERE = ipaddress.IPv4Network("0.0.0.0/0")
# One of these holds all of a subnetwork, but for who uses public addresses privately:
# https://cloud.google.com/vpc/docs/subnets#valid-ranges
_SUBNETWORK_RANGES = (
    *OWN_RANGES,
    *map(ipaddress.IPv4Network, ("100.64.0.0/10", "192.0.0.0/24", "192.0.2.0/24", "192.88.99.0/24", "198.18.0.0/15")),
    *map(ipaddress.IPv4Network, ("198.51.100.0/24", "203.0.113.0/24", "240.0.0.0/4")),
)
_BROADCAST = ipaddress.IPv4Address("255.255.255.255")
# Cloud SQL has this range for itself: https://cloud.google.com/sql/docs/postgres/private-ip
_SQL_RANGE = ipaddress.IPv4Network("172.17.0.0/16")
_LETS_ENCRYPT = re.compile(r"https://([a-z0-9-]+\.)*letsencrypt\.org(:[0-9]+)?(/\S*)?", re.IGNORECASE)
# https://cloud.google.com/iap/docs/signed-headers-howto#verifying_the_jwt_payload
_AUDIENCE = re.compile(r"/projects/[0-9]+/global/backendServices/[0-9]+")
# The issuer's own path, to which discovery adds its own: https://openid.net/specs/openid-connect-discovery-1_0.html
_ISSUER = re.compile(r"https://[A-Za-z0-9.-]+(:[0-9]+)?(/(?!\.well-known)[A-Za-z0-9._~-]+)*/?")
_CLIENT_ID = re.compile(r"[A-Za-z0-9._:/@~-]{1,255}")
_SECRET_NAME = re.compile(r"[A-Za-z0-9_-]{1,255}")
_GROUP = re.compile(r"[A-Za-z0-9._:/@+-]([A-Za-z0-9 ._:/@+-]*[A-Za-z0-9._:/@+-])?")
_SECRET_SUFFIXES = ("_password", "_token", "_secret")


@dataclass(frozen=True)
class Problem:
    """One thing to mend: which variable, the value found, what is wrong with it, what to write instead."""

    variable: str
    value: str
    problem: str
    fix: str

    def as_dict(self) -> dict[str, str]:
        """Return the four fields for the module's result."""
        return asdict(self)


def report(problems: list[Problem]) -> str:
    """Return the problems as a numbered list for a person to read."""
    lines = [f"{len(problems)} problem(s) found, nothing was created or changed:"]
    for number, problem in enumerate(problems, start=1):
        lines += [
            "",
            f"{number}. {problem.variable} = {problem.value}",
            f"   problem: {problem.problem}",
            f"   fix:     {problem.fix}",
        ]
    return "\n".join([*lines, "", "More: docs/failures.md#problems-found"])


def _shown(variable: str, value: Any) -> str:
    """Return the value as a message may show it: secrets stay hidden."""
    if variable.endswith(_SECRET_SUFFIXES):
        return "(hidden)"
    return repr(value)


class _Checker:
    """Collects problems about the variables it is given; `where` is the file the fixes point at."""

    def __init__(self, variables: Mapping[str, Any], where: str) -> None:
        self.variables = variables
        self.where = where
        self.problems: list[Problem] = []

    def add(self, variable: str, problem: str, fix: str) -> None:
        shown = _shown(variable, self.variables.get(variable))
        self.problems.append(Problem(variable, shown, problem, f"{fix} (in {self.where})"))

    def present(self, variable: str, fix: str, where: str | None = None) -> bool:
        """Report a mandatory variable that is missing or empty; say whether it can be checked further."""
        value = self.variables.get(variable)
        if value is not None and str(value).strip():
            return True
        self.problems.append(
            Problem(variable, _shown(variable, value), "mandatory, and empty", f"{fix} (in {where or self.where})")
        )
        return False

    def matches(self, variable: str, pattern: re.Pattern[str], problem: str, fix: str) -> bool:
        value = self.variables.get(variable)
        if isinstance(value, str) and pattern.fullmatch(value):
            return True
        self.add(variable, problem, fix)
        return False

    def one_of(self, variable: str, choices: tuple[str, ...]) -> None:
        if self.variables.get(variable) not in choices:
            self.add(variable, "not one of the values known", f"write one of: {', '.join(choices)}")

    def networks(self, variable: str) -> list[ipaddress.IPv4Network] | None:
        """Return the networks, neighbours taken together; None after a report of what is none."""
        value, before = self.variables.get(variable), len(self.problems)
        if not isinstance(value, list):
            self.add(variable, "not a list", 'write a list of ranges, such as ["203.0.113.0/24"]; [] closes the port')
            return None
        networks = []
        for network in value:
            try:
                found = ipaddress.ip_network(network)
            except ValueError as error:
                self.add(
                    variable, str(error), f"write {network!r} as a network in CIDR notation, such as 203.0.113.0/24"
                )
                continue
            if isinstance(found, ipaddress.IPv4Network):
                networks.append(found)
            else:
                # A firewall rule has ranges of one version, too.
                problem = f"{network} is IPv6, and nobody comes to the server by that: it has an IPv4 address alone"
                self.add(variable, problem, f"leave {network} out, and write the IPv4 ranges of the same people")
        return list(ipaddress.collapse_addresses(networks)) if len(self.problems) == before else None


def check_inventory(variables: Mapping[str, Any], inventory_dir: Path, names: Iterable[str] = ()) -> list[Problem]:
    """Return what is wrong with the inventory, all at once, without asking the cloud.

    `variables` holds the `platform_*` variables to check and `mlflow_version`, templated; `inventory_dir` is the
    directory given with `-i`, `names` are all `platform_*` variables that mean something beside those.
    """
    checker = _Checker(variables, str(inventory_dir / "group_vars" / "platform" / "main.yml"))
    _check_place(checker, inventory_dir)
    _check_names(checker)
    _check_existing(checker)
    _check_reach(checker)
    _check_machines(checker)
    _check_backups(checker)
    _check_key(checker)
    _check_removal(checker)
    _check_users(checker)
    _check_authentication(checker)
    known = {*variables, *names}
    return checker.problems + check_dynamic_inventory(variables, inventory_dir) + check_where_set(known, inventory_dir)


def _check_place(checker: _Checker, inventory_dir: Path) -> None:
    project_fix = "write the project's id, such as projects: [my-project-123]"
    if checker.present("platform_project", project_fix, str(inventory_dir / "gcp.yml")):
        checker.matches(
            "platform_project",
            _PROJECT,
            "not a project id: 6 to 30 lower-case letters, digits and hyphens, starting with a letter",
            "write the id, not the name or the number: gcloud projects list",
        )
    if not checker.present("platform_region", "write a region, such as europe-west1"):
        return
    if checker.matches("platform_region", _REGION, "not a region", "write a region, such as europe-west1"):
        region = checker.variables["platform_region"]
        checker.matches(
            "platform_zone",
            re.compile(re.escape(region) + "-[a-z]"),
            f"not a zone of platform_region {region}",
            f"write a zone of that region, such as {region}-b, or leave it out",
        )


def _check_names(checker: _Checker) -> None:
    name = checker.variables.get("platform_name")
    rule = "not a resource name: lower-case letters, digits and hyphens, starting with a letter, at most 63 characters"
    if checker.matches("platform_name", _RESOURCE_NAME, rule, "write a short name, such as mlflow"):
        # The service account is <name>-server, and its id has at most 30 characters.
        if len(str(name)) > 23:
            checker.add("platform_name", "longer than 23 characters", "write a shorter name, such as mlflow")
        checker.matches("platform_server_name", _RESOURCE_NAME, rule, "write a name such as mlflow-1, or leave it out")
        if str(checker.variables.get("platform_project") or "").strip():
            for variable in bucket_variables(checker.variables):
                _check_bucket(checker, variable)
    labels = checker.variables.get("platform_labels")
    if not isinstance(labels, dict):
        checker.add("platform_labels", "not a mapping", "write labels such as {team: research}")
        return
    for key, value in labels.items():
        if not (_LABEL_KEY.fullmatch(str(key)) and _LABEL_VALUE.fullmatch(str(value))):
            checker.add(
                "platform_labels",
                f"label {key}: {value} has other characters than lower-case letters, digits, _ and -",
                "write labels such as {team: research}",
            )


def is_issued(variables: Mapping[str, Any]) -> bool:
    """Say whether Certbot gets the certificate."""
    return not variables.get("platform_existing_certificate") and variables["platform_mlflow_authentication"] != "iap"


def is_proven_by_record(variables: Mapping[str, Any]) -> bool:
    """Say whether the certificate is one of Let's Encrypt's that a record in a public zone proves the domain for."""
    return is_issued(variables) and variables["platform_external_address_enabled"] is False


def _check_existing(checker: _Checker) -> None:
    zones = [checker.variables.get(f"platform_{name}") for name in ("dns_zone", "acme_dns_zone")]
    for variable, pattern in _EXISTING.items():
        if variable == "platform_acme_dns_zone" and zones[0] == zones[1]:
            continue
        if checker.variables.get(variable) != "":
            fix = "write its name alone, without a path, an @ or a domain; or leave it out, to have it made"
            checker.matches(variable, pattern, "not a name of such a thing", fix)
    bucket = checker.variables.get("platform_existing_bucket")
    if bucket and checker.variables.get("platform_bucket") != bucket:
        checker.add("platform_bucket", f"not platform_existing_bucket, which is {bucket}", "leave platform_bucket out")
    if checker.variables.get("platform_existing_subnetwork") and not checker.variables.get("platform_existing_network"):
        fix = "write platform_existing_network too: the network that the subnetwork is in"
        checker.add("platform_existing_subnetwork", "given without its network", fix)


def bucket_variables(variables: Mapping[str, Any]) -> list[str]:
    """Return the variables that name buckets to be made."""
    made = {
        "platform_bucket": not variables.get("platform_existing_bucket"),
        "platform_backup_bucket": bool(variables.get("platform_backup_enabled")),
        "platform_log_store": variables.get("platform_log_destination") == "bucket",
    }
    return [variable for variable, is_made in made.items() if is_made]


def _check_bucket(checker: _Checker, variable: str) -> None:
    bucket = checker.variables.get(variable)
    fix = f"write {variable}: a name of 3 to 63 characters that no other bucket in the world has"
    checker.matches(
        variable, _BUCKET, "not a bucket name: 3 to 63 lower-case letters, digits, hyphens, underscores", fix
    )
    if str(bucket).startswith("goog") or "google" in str(bucket):
        checker.add(variable, "bucket names may not begin with goog nor contain google", fix)


def _check_reach(checker: _Checker) -> None:
    if checker.present("platform_domain", "write the name users will open, such as mlflow.example.com"):
        domain = str(checker.variables["platform_domain"])
        labels = domain.split(".")
        is_long = len(domain) > 253 or len(labels) < 2
        # An address has a digit there, and no domain of the highest level has.
        if is_long or not all(_DOMAIN_LABEL.fullmatch(label) for label in labels) or not labels[-1][0].isalpha():
            checker.add(
                "platform_domain",
                "not a domain name in lower case",
                "write the name alone, without https://, port or path, and no address, such as mlflow.example.com",
            )
    if checker.present("platform_email", "write the address that alerts go to"):
        checker.matches("platform_email", _EMAIL, "not an e-mail address", "write one, such as ops@example.com")
    checker.matches(
        "platform_acme_directory_url",
        re.compile(r"https://[^\s/]+(/\S*)?"),
        "not an https URL",
        "write an ACME directory, such as https://acme-v02.api.letsencrypt.org/directory",
    )
    _check_proof(checker)
    _check_way_out(checker)
    checker.networks("platform_https_source_ranges")
    _check_port_80(checker)
    for variable in ("platform_operators", "platform_artifact_users"):
        members = checker.variables.get(variable)
        if not isinstance(members, list) or not all(_MEMBER.fullmatch(str(member)) for member in members):
            fix = "write members such as [user:ann@example.com, group:ops@example.com]"
            checker.add(variable, "not a list of members", fix)
    checker.one_of("platform_artifact_access", ARTIFACT_ACCESSES)
    users = checker.variables.get("platform_artifact_users")
    is_direct = checker.variables.get("platform_artifact_access") == "direct"
    if is_direct and users == []:
        problem = "nobody, and platform_artifact_access is direct: clients could neither write nor read artifacts"
        checker.add("platform_artifact_users", problem, "name those whose clients do, such as [group:ml@example.com]")
    elif users and not is_direct:
        problem = "given, and artifacts go through the server, which needs nobody's rights on the bucket but its own"
        checker.add("platform_artifact_users", problem, "write platform_artifact_access: direct, or leave it out")


def _check_port_80(checker: _Checker) -> None:
    """Refuse ranges from which Let's Encrypt could not see the proof that the server shows at port 80.

    https://letsencrypt.org/docs/faq/#what-ip-addresses-does-let-s-encrypt-use-to-validate-my-web-server
    """
    variables, variable = checker.variables, "platform_http_source_ranges"
    networks = checker.networks(variable)
    if networks is None or networks == [_EVERYWHERE]:
        return
    is_shown = is_issued(variables) and variables.get("platform_external_address_enabled") is True
    if is_shown and _LETS_ENCRYPT.fullmatch(str(variables.get("platform_acme_directory_url"))):
        problem = "not all addresses, and Let's Encrypt comes from any to see at port 80 that the domain is yours"
        checker.add(variable, problem, "write [0.0.0.0/0]; or platform_existing_certificate, with one of your own")


def _check_way_out(checker: _Checker) -> None:
    """Refuse a proxy that servers could not use, or whose password all of them would show, and what is no authority."""
    variables = checker.variables
    proxy, hosts = variables.get("platform_https_proxy"), variables.get("platform_no_proxy")
    if not isinstance(proxy, str) or not re.fullmatch(r"(http://[A-Za-z0-9.-]+:[0-9]+/?)?", proxy):
        # It may hold a password.
        shown = "(hidden)" if "@" in str(proxy) else repr(proxy)
        problem, fix = "not the URL of a proxy without a login", "write such as http://proxy.example.com:3128"
        checker.problems.append(Problem("platform_https_proxy", shown, problem, f"{fix} (in {checker.where})"))
    if not isinstance(hosts, list) or not all(re.fullmatch(r"[A-Za-z0-9.:/*-]+", str(host)) for host in hosts):
        checker.add("platform_no_proxy", "not a list of hosts", "write such as [.googleapis.com, 10.0.0.0/8], or []")
    certificates = variables.get("platform_ca_certificates")
    if certificates == "":
        return
    problem = "not certificates in PEM"
    try:
        if isinstance(certificates, str) and "PRIVATE KEY" not in certificates:
            ssl.create_default_context(cadata=certificates)
            return
        problem = "holds a private key, which no server but the authority's own may have"
    except (ssl.SSLError, ValueError):
        pass
    fix = "write what is between BEGIN and END CERTIFICATE, such as lookup('ansible.builtin.file', 'company-ca.pem')"
    checker.problems.append(Problem("platform_ca_certificates", "(hidden)", problem, f"{fix} (in {checker.where})"))


def _check_proof(checker: _Checker) -> None:
    """Refuse a server without an external address whose certificate nothing proves, and a zone that proves nothing."""
    variables, zone = checker.variables, checker.variables.get("platform_acme_dns_zone")
    if not isinstance(variables.get("platform_external_address_enabled"), bool):
        checker.add("platform_external_address_enabled", "not a boolean", "write true or false, without quotes")
    elif is_proven_by_record(variables) and not zone:
        problem = "empty, and without an external address the certificate is proven by a record in a public zone"
        fix = (
            "write platform_dns_zone, the zone of the domain, and this one beside it where that zone is private;"
            " or platform_existing_certificate"
        )
        checker.add("platform_acme_dns_zone", problem, fix)
    elif zone and zone != variables.get("platform_dns_zone") and not is_proven_by_record(variables):
        problem = "given, and no certificate is proven by a record: that takes platform_external_address_enabled: false"
        checker.add("platform_acme_dns_zone", problem, "leave it out")


def _check_machines(checker: _Checker) -> None:
    variables = checker.variables
    checker.one_of("platform_profile", PROFILES)
    for variable, usual in (("platform_machine_type", "e2-standard-2"), ("platform_sql_tier", "db-custom-1-3840")):
        if not variables.get(variable):
            checker.add(variable, "empty; platform_profile custom sets none", f"write one, such as {usual}")
    checker.one_of("platform_vm_image_family", VM_IMAGE_FAMILIES)
    checker.one_of("platform_sql_availability_type", SQL_AVAILABILITY_TYPES)
    checker.one_of("platform_sql_login", SQL_LOGINS)
    checker.one_of("platform_log_destination", LOG_DESTINATIONS)
    if variables.get("platform_log_destination") == "dataset":
        rule = "not a dataset name: letters, digits and underscores"
        checker.matches("platform_log_store", _DATASET, rule, "write platform_log_store, such as mlflow_logs")
    for variable in (
        "platform_backup_enabled",
        "platform_deletion_protection_enabled",
        "platform_gateway_enabled",
        "platform_sql_private_service_connect_enabled",
    ):
        if not isinstance(variables.get(variable), bool):
            checker.add(variable, "not a boolean", "write true or false, without quotes")
    # They come from the command line, where everything is text.
    for variable in ("platform_stop_enabled", "platform_upgrade_rehearsal_enabled"):
        if str(variables.get(variable)).lower() not in ("true", "false"):
            checker.add(variable, "neither true nor false", f"give -e {variable}=true, or leave it out")
    if (
        str(variables.get("platform_upgrade_rehearsal_enabled")).lower() == "true"
        and str(variables.get("platform_upgrade_backup_enabled")).lower() == "false"
    ):
        checker.add(
            "platform_upgrade_rehearsal_enabled",
            "the set is what is tried, and platform_upgrade_backup_enabled is false",
            "leave out one of them",
        )
    for variable, (low, high, usual_number) in WHOLE_NUMBERS.items():
        number = variables.get(variable)
        if isinstance(number, bool) or not isinstance(number, int) or not low <= number <= high:
            checker.add(variable, f"not a whole number from {low} to {high}", f"write one, such as {usual_number}")
    subnetwork = variables.get("platform_subnetwork_cidr")
    try:
        network = ipaddress.IPv4Network(subnetwork)
    except ValueError as error:
        checker.add("platform_subnetwork_cidr", str(error), "write a private range, such as 10.10.0.0/24")
    else:
        is_valid = any(network.subnet_of(one) for one in _SUBNETWORK_RANGES) and _BROADCAST not in network
        if not is_valid or network.prefixlen > 29:
            problem = "not a range of /29 or larger of those that Google has for subnetworks"
            checker.add("platform_subnetwork_cidr", problem, "write a private one, such as 10.10.0.0/24")
        if network.overlaps(_SQL_RANGE):
            problem = f"overlaps {_SQL_RANGE}, from which Cloud SQL cannot be reached"
            checker.add("platform_subnetwork_cidr", problem, "write another private range, such as 10.10.0.0/24")
    version = str(variables.get("platform_sql_database_version"))
    postgres = re.fullmatch(r"POSTGRES_(\d+)", version)
    if version != MYSQL_VERSION and (not postgres or int(postgres[1]) < LOWEST_POSTGRES_VERSION):
        checker.add(
            "platform_sql_database_version",
            f"neither PostgreSQL {LOWEST_POSTGRES_VERSION} or newer nor {MYSQL_VERSION}",
            f"write POSTGRES_{LOWEST_POSTGRES_VERSION} or {MYSQL_VERSION}",
        )
    mlflow = re.fullmatch(r"(\d+)\.(\d+)\.(\d+)", str(variables.get("mlflow_version")))
    if not mlflow or tuple(int(part) for part in mlflow.groups()) < LOWEST_MLFLOW_VERSION:
        lowest = ".".join(str(part) for part in LOWEST_MLFLOW_VERSION)
        checker.add(
            "mlflow_version",
            f"not a release from {lowest} on; older ones have known holes in authentication",
            f"leave mlflow_version out, or write {lowest} or newer",
        )
    if variables.get("platform_upgrade_confirmed_version") not in ("", variables.get("mlflow_version")):
        checker.add(
            "platform_upgrade_confirmed_version",
            f"not the version that the inventory wants, which is {variables.get('mlflow_version')}",
            f"give -e platform_upgrade_confirmed_version={variables.get('mlflow_version')}, or leave it out",
        )


def _check_key(checker: _Checker) -> None:
    key, region = checker.variables.get("platform_kms_key"), checker.variables.get("platform_region")
    fix = f"write projects/<project>/locations/{region}/keyRings/<ring>/cryptoKeys/<key>, or leave it out"
    if key and checker.matches("platform_kms_key", _KEY, "not the full name of a key, without a version", fix):
        location = str(key).split("/")[3]
        if region and location != region:
            problem = f"in {location}, and bucket, secrets, database and disk need a key in their own region, {region}"
            checker.add("platform_kms_key", problem, fix)


def _check_backups(checker: _Checker) -> None:
    # https://cloud.google.com/storage/docs/bucket-lock
    for variable, lowest, highest in (
        ("platform_backup_hour", 0, 23),
        ("platform_backup_retention_days", 0, 36499),
        ("platform_gc_days", 0, 36499),
    ):
        text = str(checker.variables.get(variable))
        if not (text.isdecimal() and lowest <= int(text) <= highest):
            checker.add(variable, f"not a whole number from {lowest} to {highest}", "write one, or leave it out")


def _check_removal(checker: _Checker) -> None:
    """Refuse a name that is not the deployment's own: who names something else means something else."""
    own = {
        "bucket": "platform_bucket",
        "database": "platform_sql_instance",
        "logs": "platform_log_store",
        "project": "platform_project",
    }
    if checker.variables.get("platform_existing_bucket") and checker.variables.get("platform_destroy_bucket"):
        problem = "a bucket that was there already, which is never removed"
        checker.add("platform_destroy_bucket", problem, "leave it out")
        del own["bucket"]
    for part, source in own.items():
        variable, name = f"platform_destroy_{part}", checker.variables.get(source)
        if (checker.variables.get(variable) or name) != name:
            fix = f"give -e {variable}={name}, or leave it out"
            checker.add(variable, f"not this deployment's {part}, which is {name}", fix)


def _check_users(checker: _Checker) -> None:
    variables = checker.variables
    users, admin = variables.get("platform_mlflow_users"), str(variables.get("mlflow_admin_username"))
    for one in mlflow_users.problems(users, admin, "platform_mlflow_users"):
        checker.problems.append(Problem(**{**one, "fix": f"{one['fix']} (in {checker.where})"}))


def _check_authentication(checker: _Checker) -> None:
    variables = checker.variables
    checker.one_of("platform_mlflow_authentication", AUTHENTICATIONS)
    audience = variables.get("platform_iap_audience")
    if variables.get("platform_mlflow_authentication") == "iap":
        rule = "not the audience of a global backend service, without which anybody's assertion would do"
        fix = "write /projects/<number>/global/backendServices/<id>, with the numbers of project and backend service"
        checker.matches("platform_iap_audience", _AUDIENCE, rule, fix)
        _check_signed_in_users(checker)
        if variables.get("platform_dns_zone"):
            problem = "given, and its record would lead past the load balancer that signs users in"
            checker.add(
                "platform_dns_zone", problem, "leave it out, and point the domain at the load balancer yourself"
            )
    elif audience:
        problem = "given, and users log in by passwords"
        checker.add("platform_iap_audience", problem, "write platform_mlflow_authentication: iap, or leave it out")
    _check_openid(checker)
    _check_unauthenticated(checker)


def _check_openid(checker: _Checker) -> None:
    """Refuse a sign-in at an OpenID provider that cannot work, and what belongs to it without it."""
    variables = checker.variables
    names = [name for name in variables if name.startswith("platform_oidc_")]
    if variables.get("platform_mlflow_authentication") != "oidc":
        for name in names:
            if variables[name]:
                problem = "given, and users sign in otherwise"
                checker.add(name, problem, "write platform_mlflow_authentication: oidc, or leave it out")
        return
    fix = "write what the provider calls itself, such as https://login.example.com/realms/ours"
    rule = "not an https URL, or with what is derived from it: /.well-known/openid-configuration"
    checker.matches("platform_oidc_issuer", _ISSUER, rule, fix)
    fix = "write the id that the provider gave to MLflow"
    checker.matches("platform_oidc_client_id", _CLIENT_ID, "not the id of a client", fix)
    fix = "write the name of the secret in Secret Manager that holds the client's secret"
    checker.matches("platform_oidc_client_secret_name", _SECRET_NAME, "not a name of a secret", fix)
    for name in ("platform_oidc_groups", "platform_oidc_admin_groups"):
        groups = variables.get(name)
        if not isinstance(groups, list) or not all(isinstance(one, str) and _GROUP.fullmatch(one) for one in groups):
            fix = "write a list of groups as the provider names them, such as [mlflow-users]; none with a comma"
            checker.add(name, "not a list of names of groups", fix)
    if variables.get("platform_oidc_admin_groups") == []:
        problem = "empty, and nobody could give anybody a permission"
        checker.add("platform_oidc_admin_groups", problem, "write the groups whose members are MLflow's administrators")
    if variables.get("platform_mlflow_users"):
        problem = "given, and with platform_mlflow_authentication: oidc the provider says who there is"
        fix = "leave it out, and give permissions to people and groups on the page /oidc/ui/user"
        checker.add("platform_mlflow_users", problem, fix)
    if variables.get("platform_sql_database_version") == MYSQL_VERSION:
        problem = "never tried with platform_mlflow_authentication: oidc, whose users have a schema of their own"
        checker.add("platform_sql_database_version", problem, f"write POSTGRES_{LOWEST_POSTGRES_VERSION}")


def _check_unauthenticated(checker: _Checker) -> None:
    """Refuse an MLflow without users that nobody acknowledged, or that everybody could reach."""
    variables, variable = checker.variables, "platform_mlflow_unauthenticated_acknowledged"
    acknowledged = variables.get(variable)
    if not isinstance(acknowledged, bool):
        checker.add(variable, "not a boolean", "write true or false, without quotes")
    if variables.get("platform_mlflow_authentication") != "none":
        if acknowledged is True:
            checker.add(variable, "given, and users log in", "leave it out")
        return
    if acknowledged is False:
        problem = "not given, and whoever reaches the server may read, change and delete all that is in it"
        fix = "write true if that is what you want; or leave out platform_mlflow_authentication"
        checker.add(variable, problem, fix)
    if variables.get("platform_mlflow_users"):
        problem = "given, and with platform_mlflow_authentication: none there are no users"
        checker.add("platform_mlflow_users", problem, "leave it out")
    if strange := _ranges_of_strangers(variables.get("platform_https_source_ranges")):
        problem = f"with platform_mlflow_authentication: none it lets strangers in: {', '.join(strange)}"
        fix = "write the ranges of your own networks, such as [10.0.0.0/8]; of public addresses none wider than /16"
        checker.add("platform_https_source_ranges", problem, fix)


def _ranges_of_strangers(ranges: Any) -> list[str]:
    """Return which ranges have more public addresses than anybody has for themselves, neighbours taken together."""
    networks = []
    for one in ranges if isinstance(ranges, list) else []:
        with contextlib.suppress(ValueError):  # Which is said where ranges are checked.
            networks.append(ipaddress.IPv4Network(one))
    return [
        str(network)
        for network in ipaddress.collapse_addresses(networks)
        if network.prefixlen < WIDEST_RANGE and not any(network.subnet_of(own) for own in OWN_RANGES)
    ]


def _check_signed_in_users(checker: _Checker) -> None:
    """Refuse users who can never be who Identity-Aware Proxy says."""
    users = checker.variables.get("platform_mlflow_users")
    for number, user in enumerate(users if isinstance(users, list) else []):
        name = user.get("name") if isinstance(user, dict) and user.get("state") != "absent" else None
        if isinstance(name, str) and (not _EMAIL.fullmatch(name) or name != name.lower()):
            problem = "not an address of e-mail in lower case, and Identity-Aware Proxy knows users by nothing else"
            fix = f"write the user's address, such as {name.lower().partition('@')[0]}@example.com, or state: absent"
            variable = f"platform_mlflow_users[{number}].name"
            checker.problems.append(Problem(variable, repr(name), problem, f"{fix} (in {checker.where})"))


def check_rotation(variables: Mapping[str, Any]) -> list[Problem]:
    """Return what is wrong with `platform_rotate`; `platform_rotation` is its list, of `platform_rotation_choices`."""
    chosen, choices = variables["platform_rotation"], sorted(variables["platform_rotation_choices"])
    unknown = [one for one in chosen if one not in choices]
    if chosen and not unknown:
        return []
    problem = f"not something that this deployment has: {', '.join(unknown)}" if unknown else "nothing was chosen"
    fix = f"give -e platform_rotate=, with one of these or several with commas in between: {', '.join(choices)}"
    return [Problem("platform_rotate", _shown("platform_rotate", variables["platform_rotate"]), problem, fix)]


class _Loader(yaml.SafeLoader):
    """Reads variable files with Ansible's own tags; what a tag hides (a vaulted value) is not looked at."""


_Loader.add_multi_constructor("!", lambda _loader, _suffix, _node: None)


def _read(path: Path) -> Any:
    """Return a file's content; None for what this cannot read (Ansible itself reports broken files)."""
    try:
        text = path.read_text(encoding="utf-8")
        if text.startswith("$ANSIBLE_VAULT"):
            return None
        if path.suffix in (".yml", ".yaml", ".json") or path.parent.name in ("group_vars", "host_vars"):
            return _Loader(text).get_single_data()
    except (OSError, UnicodeDecodeError, yaml.YAMLError):
        return None
    # An inventory in INI form: every platform_x=value in it.
    return dict(re.findall(r"(\bplatform_\w+)\s*=\s*(\S*)", text))


def _platform_keys(data: Any) -> Iterator[tuple[str, Any]]:
    """Yield every `platform_*` key of a file with its value, however deep."""
    if isinstance(data, dict):
        for key, value in data.items():
            if str(key).startswith("platform_"):
                yield str(key), value
            else:
                yield from _platform_keys(value)
    elif isinstance(data, list):
        for item in data:
            yield from _platform_keys(item)


def _variable_files(inventory_dir: Path) -> Iterator[Path]:
    """Yield every file of an inventory directory that can set a variable."""
    for path in sorted(inventory_dir.rglob("*")):
        hidden = any(part.startswith(".") for part in path.relative_to(inventory_dir).parts)
        if path.is_file() and not hidden and not path.name.endswith("~"):
            yield path


def check_where_set(names: set[str], inventory_dir: Path) -> list[Problem]:
    """Return the `platform_*` values that stand where they cannot win, and names that mean nothing.

    `playbooks/group_vars/all` beats an inventory's own `group_vars/all` and the `vars:` of its hosts file, but loses
    to its `group_vars/<group>`; a value for one host or for another group would be seen by some plays only.
    https://docs.ansible.com/ansible/latest/playbook_guide/playbooks_variables.html#understanding-variable-precedence
    """
    problems = []
    home = inventory_dir / "group_vars" / "platform"
    for path in _variable_files(inventory_dir):
        at_home = home in path.parents or path.with_suffix("") == home
        for name, value in _platform_keys(_read(path)):
            if not at_home:
                problems.append(
                    Problem(
                        name,
                        _shown(name, value),
                        f"set in {path}, where it does not win for every play",
                        f"move it to {home / 'main.yml'}",
                    )
                )
            elif name not in names:
                near = difflib.get_close_matches(name, sorted(names), n=1)
                meant = f"did you mean {near[0]}?" if near else "the names known are in group_vars/all/platform.yml"
                problems.append(
                    Problem(name, _shown(name, value), f"set in {path}, and read by nothing", f"remove it; {meant}")
                )
    return problems


def check_dynamic_inventory(variables: Mapping[str, Any], inventory_dir: Path) -> list[Problem]:
    """Return where `gcp.yml`, which finds the servers, looks for others than the variables describe.

    Provisioning one deployment and configuring another is the worst that two spellings could do.
    """
    path = inventory_dir / "gcp.yml"
    config = _read(path)
    if not isinstance(config, dict):
        return []
    problems = []
    project = variables.get("platform_project")
    projects = config.get("projects") or []
    if project and projects != [project]:
        problems.append(
            Problem(
                "platform_project",
                _shown("platform_project", project),
                f"{path} looks for the servers in projects: {projects}",
                f"write the project in {path} only, and set platform_project nowhere else",
            )
        )
    label = f"labels.mlflow-deployment = {variables.get('platform_name')}"
    filters = config.get("filters") or []
    if label not in filters:
        problems.append(
            Problem(
                "platform_name",
                _shown("platform_name", variables.get("platform_name")),
                f"{path} looks for servers with filters: {filters}",
                f"write the filter {label!r} in {path}",
            )
        )
    return problems
