"""What the cloud must satisfy before anything is made.

All is read once, side by side; what follows are pure functions on the answers. Each yields problems, and notes (text)
about what could not be checked or may be meant so. An API that was never enabled answers 403 SERVICE_DISABLED: not a
problem, since the first run enables it, but a check that could not be made.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

from ansible_collections.mlops.mlflow_gcp.plugins.module_utils.preflight import (
    PERMISSIONS,
    PERMISSIONS_OF,
    PERMISSIONS_OF_KEY,
    SPARED_PERMISSIONS,
    Problem,
    bucket_variables,
    is_proven_by_record,
)

Json = dict[str, Any]
Response = tuple[int, Json]
# GETs a URL, or POSTs to it when there is a body.
Ask = Callable[..., Response]
# Returns the addresses that a name has in DNS, none when it has none.
Resolve = Callable[[str], list[str]]
Finding = Problem | str

THREADS = 8
# What is asked about each of the buckets.
QUESTIONS = {"platform_bucket": "bucket", "platform_log_store": "log bucket", "platform_backup_bucket": "backup bucket"}
_PROJECTS = "https://cloudresourcemanager.googleapis.com/v1/projects"
_ACT_AS = "iam.serviceAccounts.actAs"
_KEY_PERMISSIONS = ["cloudkms.cryptoKeys.getIamPolicy", "cloudkms.cryptoKeys.setIamPolicy"]
_LABEL = "mlflow-deployment"
# The name that Google gives the peering of private services access in the network.
_PEERING = "servicenetworking-googleapis-com"
# Which continent a multi-region of Cloud Storage is: https://cloud.google.com/storage/docs/locations
_CONTINENTS = {"EU": "europe-", "US": "us-", "ASIA": "asia-"}
# Families that count for the quota CPUS; any other has one of its own: https://cloud.google.com/compute/resource-usage
_PLAIN_CPUS = {"e2", "f1", "g1", "n1"}
_DISK_QUOTAS = {"pd-balanced": "SSD_TOTAL_GB", "pd-ssd": "SSD_TOTAL_GB", "pd-standard": "DISKS_TOTAL_GB"}
# Lists of an organization that forbid what a run makes, and what of it is looked for in them:
# https://cloud.google.com/resource-manager/docs/organization-policy/org-policy-constraints
_CONSTRAINTS = {
    "compute.vmExternalIpAccess": "projects/{project}/zones/{zone}/instances/{server_name}",
    "gcp.restrictServiceUsage": "compute.googleapis.com",
}
_FIREWALLS = {"https": "platform_https_source_ranges", "http": "platform_http_source_ranges", "iap-ssh": None}


@dataclass(frozen=True)
class Seen:
    """The variables, where they are set, and what the cloud answered to each question."""

    variables: Mapping[str, Any]
    where: str
    answers: Mapping[str, Response]
    resolved: list[str]

    def __getitem__(self, name: str) -> Any:
        return self.variables[f"platform_{name}"]

    def found(self, question: str) -> Json | None:
        """Return what is there, None when it is not or could not be read."""
        status, body = self.answers.get(question, (404, {}))
        return body if status == 200 else None

    def absent(self, question: str) -> bool:
        """Say whether Google knows that it is not there."""
        return self.answers[question][0] == 404

    def problem(self, variable: str, problem: str, fix: str) -> Problem:
        """Return a problem with a variable."""
        return Problem(variable, repr(self.variables[variable]), problem, f"{fix} (in {self.where})")


def check_cloud(
    ask: Ask, variables: Mapping[str, Any], where: str, resolve: Resolve, *, for_removal: bool = False
) -> tuple[list[Problem], list[str]]:
    """Return what the cloud says against the inventory, and notes.

    `ask` GETs a URL, or POSTs a body to it, and returns (HTTP status, JSON body). Where things are to be removed, it
    does not matter whether others could be made.
    """
    project = variables["platform_project"]
    status, body = ask(f"{_PROJECTS}/{project}")
    if status != 200 and not _service_disabled(body):
        problem = f"the project cannot be reached with these credentials: {_message(status, body)}"
        fix = "check the id (gcloud projects list), and that the account you are logged in with may see the project"
        return [Problem("platform_project", repr(project), problem, f"{fix} (in {where})")], []
    if status == 200 and body.get("lifecycleState") != "ACTIVE":
        problem = f"the project is {body.get('lifecycleState')}"
        fix = f"restore it (gcloud projects undelete {project}), or write another (in {where})"
        return [Problem("platform_project", repr(project), problem, fix)], []
    asked = questions(variables)
    with ThreadPoolExecutor(THREADS) as pool:
        resolved = pool.submit(resolve, variables["platform_domain"])
        answers = dict(zip(asked, pool.map(lambda question: ask(*question), asked.values()), strict=True))
    seen = Seen(variables, where, {**answers, "project": (status, body)}, resolved.result())
    checks = REMOVAL_CHECKS if for_removal else (*REMOVAL_CHECKS, *PROVISION_CHECKS)
    findings = [finding for check in checks for finding in check(seen)]
    return [one for one in findings if isinstance(one, Problem)], [one for one in findings if isinstance(one, str)]


def questions(variables: Mapping[str, Any]) -> dict[str, tuple[Any, ...]]:
    """Return what is asked, as arguments of `ask`, by the name of its answer."""
    get = {key.removeprefix("platform_"): value for key, value in variables.items()}
    project, name = get["project"], get["name"]
    compute = f"https://compute.googleapis.com/compute/v1/projects/{project}"
    region, zone = f"{compute}/regions/{get['region']}", f"{compute}/zones/{get['zone']}"
    network = f"https://www.googleapis.com/compute/v1/projects/{project}/global/networks/{get['network_name']}"
    account = f"https://iam.googleapis.com/v1/projects/{project}/serviceAccounts/{get['service_account_email']}"
    secrets = f"https://secretmanager.googleapis.com/v1/projects/{project}/secrets"
    urls = {
        "billing": f"https://cloudbilling.googleapis.com/v1/projects/{project}/billingInfo",
        "region": region,
        "project quotas": compute,
        "machine type": f"{zone}/machineTypes/{get['machine_type']}",
        "network": f"{compute}/global/networks/{get['network_name']}",
        "subnetwork": f"{region}/subnetworks/{get['subnetwork_name']}",
        "ranges": f"{compute}/aggregated/subnetworks?filter=" + quote(f'network = "{network}"'),
        "peering ranges": f"{compute}/global/addresses?filter=" + quote('purpose = "VPC_PEERING"'),
        "router": f"{region}/routers/{name}",
        "address": f"{region}/addresses/{name}",
        "server": f"{zone}/instances/{get['server_name']}",
        "disk": f"{zone}/disks/{get['server_name']}",
        "sql instance": f"https://sqladmin.googleapis.com/v1/projects/{project}/instances/{get['sql_instance']}",
        "bucket": f"https://storage.googleapis.com/storage/v1/b/{get['bucket']}",
        "account": account,
        **{f"firewall {rule}": f"{compute}/global/firewalls/{name}-allow-{rule}" for rule in _FIREWALLS},
        **{
            f"secret {item['secret']}": f"{secrets}/{item['secret']}"
            for item in get["credentials"] + get["user_credentials"]
        },
    }
    if get["log_destination"] == "bucket":
        urls["log bucket"] = f"https://storage.googleapis.com/storage/v1/b/{get['log_store']}"
    if get["backup_enabled"]:
        urls["backup bucket"] = f"https://storage.googleapis.com/storage/v1/b/{get['backup_bucket']}"
    if get["existing_sql_instance"]:
        for database in (get["sql_database"], get["sql_auth_database"]):
            urls[f"database {database}"] = f"{urls['sql instance']}/databases/{database}"
        if get["sql_login"] == "password":
            urls[f"user {get['sql_user']}"] = f"{urls['sql instance']}/users/{get['sql_user']}"
    if get["existing_certificate"]:
        urls["certificate"] = f"{secrets}/{get['existing_certificate']}/versions/latest"
    if get["oidc_client_secret_name"]:
        urls["client secret"] = f"{secrets}/{get['oidc_client_secret_name']}/versions/latest"
    zones = f"https://dns.googleapis.com/dns/v1/projects/{project}/managedZones"
    if get["dns_zone"]:
        urls["zone"] = f"{zones}/{get['dns_zone']}"
    if is_proven_by_record(variables) and get["acme_dns_zone"]:
        urls["certificate's zone"] = f"{zones}/{get['acme_dns_zone']}"
        urls["zones"] = zones
    if get["existing_network"] and not get["external_address_enabled"]:
        urls["routers"] = f"{region}/routers"
    of_key: dict[str, tuple[Any, ...]] = {}
    if get["kms_key"]:
        key = f"https://cloudkms.googleapis.com/v1/{get['kms_key']}"
        of_key = {
            "key": (key,),
            "permissions on the key": (f"{key}:testIamPermissions", {"permissions": _KEY_PERMISSIONS}),
        }
    wanted = sorted(permission for permissions in _needed_permissions(variables).values() for permission in permissions)
    return {question: (url,) for question, url in urls.items()} | {
        **of_key,
        "permissions": (f"{_PROJECTS}/{project}:testIamPermissions", {"permissions": wanted}),
        # It may have been given on the servers' account alone.
        "permissions on the account": (f"{account}:testIamPermissions", {"permissions": [_ACT_AS]}),
        **{
            constraint: (f"{_PROJECTS}/{project}:getEffectiveOrgPolicy", {"constraint": f"constraints/{constraint}"})
            for constraint in _CONSTRAINTS
        },
    }


def _needed_permissions(variables: Mapping[str, Any]) -> dict[str, list[str]]:
    """Return the permissions by the role that has them, without those for what is there already."""
    spared = {
        permission
        for (variable, value), permissions in SPARED_PERMISSIONS.items()
        if (bool(variables[variable]) if isinstance(value, bool) else variables[variable]) == value
        for permission in permissions
    }
    if is_proven_by_record(variables):
        spared.discard("iam.roles.create")
    else:
        spared.add("dns.managedZones.setIamPolicy")
    return {role: [one for one in permissions if one not in spared] for role, permissions in PERMISSIONS.items()}


def _permissions(seen: Seen) -> Iterator[Finding]:
    status, body = seen.answers["permissions"]
    if status != 200:
        yield f"Whether these credentials may make all this was not checked: {_message(status, body)}"
        return
    held = {*body.get("permissions", []), *(seen.found("permissions on the account") or {}).get("permissions", [])}
    missing = {role: sorted({*wanted} - held) for role, wanted in _needed_permissions(seen.variables).items()}
    roles = [role for role, permissions in missing.items() if permissions]
    if roles:
        lacking = ", ".join(permission for role in roles for permission in missing[role])
        fix = f"have roles/owner granted on the project to the account you are logged in with, or {', '.join(roles)}"
        yield Problem(PERMISSIONS_OF, repr(seen["project"]), f"these credentials lack {lacking}", fix)


def _place(seen: Seen) -> Iterator[Finding]:
    project, region, zone = seen["project"], seen["region"], seen["zone"]
    status, body = seen.answers["region"]
    billing = seen.found("billing")
    if _reasons(body) & {"BILLING_DISABLED"} or (billing is not None and not billing.get("billingEnabled")):
        fix = f"link a billing account: https://console.cloud.google.com/billing/linkedaccount?project={project}"
        yield Problem("platform_project", repr(project), "it has no billing account, so nothing can be enabled", fix)
    elif _service_disabled(body):
        yield (
            f"Compute Engine is not enabled in {project} yet: whether {region} and {zone} exist, whether billing allows"
            " it, and the quotas were not checked."
        )
    elif status != 200:
        fix = "pick one of: gcloud compute regions list"
        yield seen.problem("platform_region", f"no such region: {_message(status, body)}", fix)
    else:
        zones = sorted(_last(link) for link in body.get("zones", []))
        if zone not in zones:
            yield seen.problem("platform_zone", f"region {region} has no such zone", f"write one of {', '.join(zones)}")


def _machine_type(seen: Seen) -> Iterator[Finding]:
    if seen.found("region") and seen.absent("machine type"):
        fix = f"pick one of: gcloud compute machine-types list --zones={seen['zone']}"
        yield seen.problem("platform_machine_type", f"zone {seen['zone']} has no such machine type", fix)
    # https://cloud.google.com/compute/docs/reference/rest/v1/machineTypes
    elif (seen.found("machine type") or {}).get("architecture") == "ARM64":
        problem = "an Arm machine, and Debian's images of platform_vm_image_family are for x86-64"
        yield seen.problem(
            "platform_machine_type", problem, "write an x86-64 one, such as e2-standard-2 or n2-standard-2"
        )


def _organization(seen: Seen) -> Iterator[Finding]:
    """What an organization forbids, where these credentials may see it: many owners of projects may not."""
    names = {key: seen[key] for key in ("project", "zone", "server_name")}
    for constraint, pattern in _CONSTRAINTS.items():
        if constraint == "compute.vmExternalIpAccess" and not seen["external_address_enabled"]:
            continue
        policy = (seen.found(constraint) or {}).get("listPolicy", {})
        allowed, denied = policy.get("allowedValues", []), policy.get("deniedValues", [])
        value = pattern.format(**names)
        # A group of values, in:..., is for Google to resolve.
        is_clear = not any(":" in one for one in [*allowed, *denied])
        if policy.get("allValues") == "DENY" or (is_clear and (value in denied or (allowed and value not in allowed))):
            problem = f"the organization's policy {constraint} forbids {value}"
            fix = "have the organization's administrator allow it for this project"
            yield Problem("platform_project", repr(seen["project"]), problem, fix)


def _bucket_owner(seen: Seen) -> Iterator[Finding]:
    number = seen.answers["project"][1].get("projectNumber")
    for variable in bucket_variables(seen.variables):
        name = seen.variables[variable]
        status, body = seen.answers[QUESTIONS[variable]]
        if status == 404 or _service_disabled(body):
            continue
        if status == 403 or (status == 200 and number not in (body.get("projectNumber"), None)):
            problem = "a bucket of this name is somebody else's, or these credentials may not read it"
            yield seen.problem(variable, problem, f"write {variable}: a name that no other bucket in the world has")
        elif status != 200:
            yield f"Whether the bucket {name} can be made was not checked: {_message(status, body)}"


def _clashes(seen: Seen) -> Iterator[Finding]:
    """What has a name of ours and is not ours would be changed by a run, or removed."""
    name = seen["name"]
    labelled = {f"the machine {seen['server_name']}": seen.found("server")}
    labelled |= {f"the {question}": seen.found(question) for question in seen.answers if question.startswith("secret ")}
    labelled[f"the bucket {seen['log_store']}"] = seen.found("log bucket")
    labelled[f"the bucket {seen['backup_bucket']}"] = seen.found("backup bucket")
    if not seen.found("server"):
        # A machine of ours has its disk, labelled or not.
        labelled[f"the disk {seen['server_name']}"] = seen.found("disk")
    if not seen["existing_bucket"]:
        labelled[f"the bucket {seen['bucket']}"] = seen.found("bucket")
    sql = seen.found("sql instance")
    if sql and not seen["existing_sql_instance"]:
        labels = sql["settings"].get("userLabels", {})
        labelled[f"the Cloud SQL instance {seen['sql_instance']}"] = {"labels": labels}
    for what, found in labelled.items():
        if found is not None and found.get("labels", {}).get(_LABEL) != name:
            fix = f"write another name; or, if it is this deployment's, label it {_LABEL}={name}"
            yield seen.problem("platform_name", f"{what} is there, without this deployment's label", fix)
    another = "write another name, or remove what has this one"
    network = seen.found("network")
    if network and not seen["existing_network"] and (network.get("autoCreateSubnetworks") or "IPv4Range" in network):
        fix = f"write another name; or use it as it is, with platform_existing_network: {name}"
        yield seen.problem("platform_name", f"the network {name} is there, and not one that a deployment makes", fix)
    for question in ("subnetwork", "router", *(f"firewall {rule}" for rule in _FIREWALLS)):
        found = seen.found(question)
        is_ours = question != "subnetwork" or not seen["existing_subnetwork"]
        if found and is_ours and _last(found["network"]) != seen["network_name"]:
            what = f"the {question.partition(' ')[0]} {found['name']}"
            yield seen.problem("platform_name", f"{what} is there, in the network {_last(found['network'])}", another)
    users = [_last(user) for user in (seen.found("address") or {}).get("users", [])]
    if users and users != [seen["server_name"]]:
        yield seen.problem("platform_name", f"the address {name} is held by {', '.join(users)}", another)


def _clashes_in_the_database(seen: Seen) -> Iterator[Finding]:
    """What is made in an instance that others use carries no label: it is ours where our secrets are."""
    secrets = [seen.answers[question] for question in seen.answers if question.startswith("secret ")]
    if not all(status == 404 or _service_disabled(body) for status, body in secrets):
        return
    for question in seen.answers:
        if question.startswith(("database ", "user ")) and seen.found(question):
            problem = f"the {question} is there in {seen['sql_instance']}, and nothing else of this deployment"
            yield seen.problem("platform_name", problem, "write another name, by which the databases are called too")


def _existing_network(seen: Seen) -> Iterator[Finding]:
    if not seen["existing_network"]:
        return
    network = seen.found("network")
    if network is None:
        yield _not_there(seen, "platform_existing_network", "network", "gcloud compute networks list")
    elif not (seen["existing_sql_instance"] or seen["sql_private_service_connect_enabled"]):
        peerings = {peering["name"] for peering in network.get("peerings", []) if peering.get("state") == "ACTIVE"}
        if _PEERING not in peerings:
            problem = "it has no private services access, by which the database is reached"
            fix = (
                "have it set up: https://cloud.google.com/sql/docs/postgres/configure-private-services-access;"
                " or write platform_sql_private_service_connect_enabled: true"
            )
            yield seen.problem("platform_existing_network", problem, fix)
    yield from _way_out(seen)


def _way_out(seen: Seen) -> Iterator[Finding]:
    """A note at most: a proxy, or a route through a network of one's own, may be meant."""
    routers = (seen.found("routers") or {}).get("items", [])
    if "routers" in seen.answers and not any(
        _last(one["network"]) == seen["network_name"] and one.get("nats") for one in routers
    ):
        yield (
            f"The network {seen['network_name']} has no Cloud NAT in {seen['region']}, and the server no external"
            " address: see that it reaches Debian's packages, PyPI and the certificate authority otherwise."
        )


def _existing_subnetwork(seen: Seen) -> Iterator[Finding]:
    name = seen["existing_subnetwork"]
    if not name:
        return
    subnetwork = seen.found("subnetwork")
    if subnetwork is None:
        listing = f"gcloud compute networks subnets list --regions={seen['region']}"
        yield _not_there(seen, "platform_existing_subnetwork", "subnetwork", listing)
        return
    if _last(subnetwork["network"]) != seen["network_name"]:
        problem = f"it is in the network {_last(subnetwork['network'])}, not in {seen['network_name']}"
        yield seen.problem("platform_existing_subnetwork", problem, "write one of that network")
    if not subnetwork.get("privateIpGoogleAccess"):
        fix = (
            f"gcloud compute networks subnets update {name} --region={seen['region']} --enable-private-ip-google-access"
        )
        yield seen.problem("platform_existing_subnetwork", "it has no private Google access", fix)


def _existing_bucket(seen: Seen) -> Iterator[Finding]:
    name = seen["existing_bucket"]
    if not name:
        return
    bucket = seen.found("bucket")
    if bucket is None:
        yield _not_there(seen, "platform_existing_bucket", "bucket", "gcloud storage buckets list")
        return
    access, update = bucket.get("iamConfiguration", {}), f"gcloud storage buckets update gs://{name}"
    if not access.get("uniformBucketLevelAccess", {}).get("enabled"):
        problem = "its access is not uniform, so objects may be open beyond what the bucket says"
        yield seen.problem("platform_existing_bucket", problem, f"{update} --uniform-bucket-level-access")
    if access.get("publicAccessPrevention") != "enforced":
        problem = "public access is not prevented"
        yield seen.problem("platform_existing_bucket", problem, f"{update} --public-access-prevention")
    location, region = bucket["location"], seen["region"]
    is_elsewhere = bucket.get("locationType") == "region" and location.lower() != region
    if is_elsewhere or not region.startswith(_CONTINENTS.get(location, "")):
        problem = f"it is in {location}, away from the server: every artifact would cross regions"
        yield seen.problem("platform_existing_bucket", problem, f"write one in {region}, or move the deployment")


def _existing_sql_instance(seen: Seen) -> Iterator[Finding]:
    variable = "platform_existing_sql_instance"
    if not seen[variable.removeprefix("platform_")]:
        return
    instance = seen.found("sql instance")
    if instance is None:
        yield _not_there(seen, variable, "Cloud SQL instance", "gcloud sql instances list")
        return
    settings = instance["settings"]
    if instance["databaseVersion"] != seen["sql_database_version"]:
        problem = f"it is {instance['databaseVersion']}"
        yield seen.problem("platform_sql_database_version", problem, f"write {instance['databaseVersion']}")
    if instance["region"] != seen["region"]:
        problem = f"it is in {instance['region']}, not in platform_region"
        yield seen.problem(variable, problem, f"write one in {seen['region']}, or move the deployment")
    if instance["state"] != "RUNNABLE" or settings.get("activationPolicy") == "NEVER":
        problem = f"it is not running: {instance['state']}, activation policy {settings.get('activationPolicy')}"
        fix = f"gcloud sql instances patch {seen['sql_instance']} --activation-policy=ALWAYS, and wait until it runs"
        yield seen.problem(variable, problem, fix)
    configuration = settings.get("ipConfiguration", {})
    network, config = _last(configuration.get("privateNetwork", "")), configuration.get("pscConfig", {})
    if seen["sql_private_service_connect_enabled"]:
        switch, project = "platform_sql_private_service_connect_enabled", seen.found("project") or {}
        if not config.get("pscEnabled"):
            problem = f"the instance {seen['sql_instance']} has no Private Service Connect"
            yield seen.problem(switch, problem, "leave it out")
        elif not {seen["project"], project.get("projectNumber")} & {*config.get("allowedConsumerProjects", [])}:
            fix = f"have {seen['project']} added to those that its --allowed-psc-projects names"
            yield seen.problem(variable, "it does not let this project in by Private Service Connect", fix)
    elif config.get("pscEnabled") and not network:
        fix = "write platform_sql_private_service_connect_enabled: true"
        yield seen.problem(variable, "it is reached by Private Service Connect alone", fix)
    elif network != seen["network_name"]:
        problem = f"its private address is in {network or 'no network'}, the server in {seen['network_name']}"
        fix = f"write platform_existing_network: {network}" if network else "have it given a private address"
        yield seen.problem(variable, problem, fix)
    flags = {flag["name"]: flag.get("value") for flag in settings.get("databaseFlags", [])}
    # PostgreSQL's flag, and MySQL's.
    lets_iam_in = "on" in (flags.get("cloudsql.iam_authentication"), flags.get("cloudsql_iam_authentication"))
    if seen["sql_login"] == "iam" and not lets_iam_in:
        problem = "it does not let IAM accounts log in"
        fix = "have its flag for IAM authentication set to on; or write platform_sql_login: password"
        yield seen.problem(variable, problem, fix)


def _existing_service_account(seen: Seen) -> Iterator[Finding]:
    if not seen["existing_service_account"]:
        return
    account = seen.found("account")
    if account is None:
        listing = "gcloud iam service-accounts list"
        yield _not_there(seen, "platform_existing_service_account", "service account", listing)
    elif account.get("disabled"):
        fix = f"gcloud iam service-accounts enable {seen['service_account_email']}"
        yield seen.problem("platform_existing_service_account", "it is disabled", fix)


def _secrets(seen: Seen) -> Iterator[Finding]:
    for name, question in (("existing_certificate", "certificate"), ("oidc_client_secret_name", "client secret")):
        if not seen[name]:
            continue
        version = seen.found(question)
        if version is None:
            yield _not_there(seen, f"platform_{name}", "secret with a version", "gcloud secrets list")
        elif version.get("state") != "ENABLED":
            fix = f"gcloud secrets versions enable latest --secret={seen[name]}"
            yield seen.problem(f"platform_{name}", "its latest version is not enabled", fix)


def _zone(seen: Seen) -> Iterator[Finding]:
    if not seen["dns_zone"]:
        return
    zone = seen.found("zone")
    if zone is None:
        yield _not_there(seen, "platform_dns_zone", "managed zone", "gcloud dns managed-zones list")
    elif not f".{seen['domain']}.".endswith(f".{zone['dnsName']}"):
        problem = f"it is the zone of {zone['dnsName']}, in which {seen['domain']} is not"
        yield seen.problem("platform_dns_zone", problem, "write the zone of the domain, or leave it empty")
    elif zone.get("visibility", "public") != "public" and seen["external_address_enabled"]:
        yield seen.problem("platform_dns_zone", "it is private, so users do not see it", "write a public zone")


def _acme_zone(seen: Seen) -> Iterator[Finding]:
    """Debian's Certbot takes the innermost public zone of the domain, and no name for it."""
    question = "certificate's zone"
    if question not in seen.answers:
        return
    variable, zone = "platform_acme_dns_zone", seen.found(question)
    if zone is None:
        if seen["acme_dns_zone"] != seen["dns_zone"]:
            yield _not_there(seen, variable, "public managed zone", "gcloud dns managed-zones list")
        return
    if not f".{seen['domain']}.".endswith(f".{zone['dnsName']}"):
        # Which the domain's own zone has been told already.
        if seen["acme_dns_zone"] != seen["dns_zone"]:
            problem = f"it is the zone of {zone['dnsName']}, in which {seen['domain']} is not"
            yield seen.problem(variable, problem, "write a public zone of the domain")
        return
    if zone.get("visibility", "public") != "public":
        problem = "it is private, so the certificate authority does not see the record that proves the domain"
        yield seen.problem(variable, problem, "write a public zone of the domain; this one may stay platform_dns_zone")
        return
    nearer = [
        one["name"]
        for one in (seen.found("zones") or {}).get("managedZones", [])
        if one.get("visibility", "public") == "public"
        and f".{seen['domain']}.".endswith(f".{one['dnsName']}")
        and len(one["dnsName"]) > len(zone["dnsName"])
    ]
    if nearer:
        problem = f"the domain is in the public zone {nearer[0]} as well, which is nearer, and which Certbot takes"
        yield seen.problem(variable, problem, f"write {nearer[0]}")


def _not_there(seen: Seen, variable: str, what: str, listing: str) -> Problem:
    question = {
        "managed zone": "zone",
        "public managed zone": "certificate's zone",
        "secret with a version": "certificate",
        "service account": "account",
        "Cloud SQL instance": "sql instance",
    }
    status, body = seen.answers[question.get(what, what)]
    return seen.problem(
        variable, f"no {what} of this name: {_message(status, body)}", f"{listing}; or leave it out, to have it made"
    )


def _key(seen: Seen) -> Iterator[Finding]:
    """Look at the key before anything is encrypted with it: without it, the data is gone."""
    if not seen["kms_key"]:
        return
    status, body = seen.answers["key"]
    held = (seen.found("permissions on the key") or {}).get("permissions", [])
    lacking = sorted({*_KEY_PERMISSIONS} - {*held})
    state = body.get("primary", {}).get("state")
    if _service_disabled(body):
        yield f"Cloud KMS is not enabled yet: whether {seen['kms_key']} can be used was not checked."
    elif status != 200:
        problem = f"the key cannot be read with these credentials: {_message(status, body)}"
        fix = "write one that is there, or have roles/cloudkms.admin granted on it to the account you use"
        yield seen.problem("platform_kms_key", problem, fix)
    elif body.get("purpose") != "ENCRYPT_DECRYPT" or state != "ENABLED":
        problem = f"the key is for {body.get('purpose')} and its primary version is {state}"
        yield seen.problem("platform_kms_key", problem, "enable its primary version, or write another key")
    elif lacking:
        problem = f"these credentials lack {', '.join(lacking)} on the key"
        fix = "have roles/cloudkms.admin granted on the key to the account you are logged in with"
        yield Problem(PERMISSIONS_OF_KEY, repr(seen["kms_key"]), problem, fix)


def _quotas(seen: Seen) -> Iterator[Finding]:
    """What is still to be made, against what is left. What a quota does not count for is found when it is made."""
    sides = {"platform_project": seen.found("project quotas"), "platform_region": seen.found("region")}
    machine = seen["machine_type"].partition("-")[0]
    cpus = int((seen.found("machine type") or {}).get("guestCpus", 0))
    rules = [f"firewall {rule}" for rule, source in _FIREWALLS.items() if not source or seen.variables[source]]
    counted = [
        ("platform_project", "NETWORKS", 1, ["network"]),
        ("platform_project", "SUBNETWORKS", 1, ["subnetwork"]),
        ("platform_project", "ROUTERS", 0 if seen["existing_network"] else 1, ["router"]),
        ("platform_project", "FIREWALLS", 1, rules),
        ("platform_project", "CPUS_ALL_REGIONS", cpus, ["server"]),
        ("platform_region", "CPUS" if machine in _PLAIN_CPUS else f"{machine.upper()}_CPUS", cpus, ["server"]),
        ("platform_region", "IN_USE_ADDRESSES", int(seen["external_address_enabled"]), ["server"]),
        ("platform_region", "STATIC_ADDRESSES", int(seen["external_address_enabled"]), ["address"]),
        (
            "platform_region",
            _DISK_QUOTAS.get(seen.variables["gcp_instance_disk_type"], ""),
            seen["disk_size_gib"],
            ["disk"],
        ),
    ]
    for variable, metric, each, made in counted:
        quota = next((one for one in (sides[variable] or {}).get("quotas", []) if one["metric"] == metric), None)
        needed = each * sum(seen.absent(question) for question in made)
        if quota and needed and quota["usage"] + needed > quota["limit"]:
            problem = (
                f"the quota {metric} is {quota['limit']:g}, {quota['usage']:g} are in use, {needed} more are needed"
            )
            fix = f"ask for more: https://console.cloud.google.com/iam-admin/quotas?project={seen['project']}"
            yield Problem(variable, repr(seen.variables[variable]), problem, f"{fix}, or free what is not needed")


def _ranges(seen: Seen) -> Iterator[Finding]:
    """A subnetwork that is still to be made, against what is in its network."""
    if seen["existing_subnetwork"] or not seen.absent("subnetwork"):
        return
    wanted = ipaddress.IPv4Network(seen["subnetwork_cidr"])
    taken: list[tuple[str, str]] = []
    for place in (seen.found("ranges") or {}).get("items", {}).values():
        for one in place.get("subnetworks", []):
            others = [one.get("ipCidrRange"), *(more["ipCidrRange"] for more in one.get("secondaryIpRanges", []))]
            taken += [(f"the subnetwork {one['name']}", text) for text in others if text]
    for one in (seen.found("peering ranges") or {}).get("items", []):
        if _last(one.get("network", "")) == seen["network_name"]:
            taken.append((f"the range {one['name']} of private services", f"{one['address']}/{one['prefixLength']}"))
    for what, text in taken:
        if ipaddress.IPv4Network(text).overlaps(wanted):
            problem = f"it overlaps {text}, {what} of the network {seen['network_name']}"
            yield seen.problem("platform_subnetwork_cidr", problem, "write a private range that is free there")


def _domain(seen: Seen) -> Iterator[Finding]:
    """A note at most: a name not set yet is what a first run finds, and a proxy in between may be meant."""
    address = (seen.found("address") or {}).get("address")
    if not seen["external_address_enabled"]:
        address = (seen.found("server") or {}).get("networkInterfaces", [{}])[0].get("networkIP")
    # What this machine alone is told says nothing of what users see.
    seen_by_others = [one for one in seen.resolved if not ipaddress.ip_address(one).is_loopback]
    strangers = [one for one in seen_by_others if one != address]
    if address and strangers:
        fix = (
            f"see that the domain is delegated to the zone {seen['dns_zone']}" if seen["dns_zone"] else "set its record"
        )
        yield (
            f"platform_domain = {seen['domain']!r} resolves to {', '.join(strangers)}, the server's address is"
            f" {address}: {fix}, unless a proxy in between is meant. No certificate can be issued else."
        )


REMOVAL_CHECKS = (_permissions, _place, _bucket_owner, _clashes, _clashes_in_the_database)
PROVISION_CHECKS = (
    _organization,
    _machine_type,
    _existing_network,
    _existing_subnetwork,
    _existing_bucket,
    _existing_sql_instance,
    _existing_service_account,
    _secrets,
    _zone,
    _acme_zone,
    _key,
    _quotas,
    _ranges,
    _domain,
)


def _last(link: str) -> str:
    return link.rsplit("/", 1)[-1]


def _reasons(body: Json) -> set[str]:
    """Return the reasons of an error. https://cloud.google.com/apis/design/errors#error_info."""
    error = body.get("error")
    if not isinstance(error, dict):
        return set()
    return {str(item.get("reason")) for key in ("details", "errors") for item in error.get(key, [])}


def _service_disabled(body: Json) -> bool:
    return bool(_reasons(body) & {"SERVICE_DISABLED", "accessNotConfigured"})


def _message(status: int, body: Json) -> str:
    error = body.get("error")
    text = error.get("message") if isinstance(error, dict) else None
    return f"HTTP {status} {text or ''}".rstrip()
