"""The kinds of resources, and of each only what Google's discovery documents do not say.

Sources: the REST references under https://cloud.google.com/compute/docs/reference/rest/v1,
https://cloud.google.com/sql/docs/postgres/admin-api/rest, https://cloud.google.com/storage/docs/json_api/v1,
https://cloud.google.com/iam/docs/reference/rest, https://cloud.google.com/secret-manager/docs/reference/rest,
https://cloud.google.com/logging/docs/reference/v2/rest, https://cloud.google.com/monitoring/api/ref_v3/rest,
https://cloud.google.com/bigquery/docs/reference/rest/v2/datasets.
A test holds every row against the discovery documents.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from ansible_collections.mlops.mlflow_gcp.plugins.module_utils.drift import Rules
from ansible_collections.mlops.mlflow_gcp.plugins.module_utils.session import BEING_ACTIVATED


@dataclass(frozen=True)
class Setter:
    """A method that changes one field where there is no patch.

    `style` is what goes into the request: the `value` itself, the value `wrapped` under the field's name, a `query`, or
    the `members` of a list one by one, with `removal` as the method that takes one away.
    `fingerprint` is the field that a wrapped value needs beside it.
    """

    method: str
    style: str
    fingerprint: str | None = None
    removal: str | None = None


@dataclass(frozen=True)
class Kind:
    """One kind of resource. Field paths are names joined by dots."""

    api: str
    collection: str
    schema: str
    # Resource name in the newer APIs, which have it whole in the URL.
    full_name: str | None = None
    # Field of labels, where Google assigns the name: ours goes into a label, by which it is found in the list.
    name_label_in: str | None = None
    # What it belongs to, `instance` or `network`, when that is not in a field.
    parent: str | None = None
    create: str = "insert"
    create_query: Mapping[str, str] = field(default_factory=dict)
    # Field of the create and patch request that holds the resource, and the one that holds its name.
    wrapper: str | None = None
    wrapper_name: str | None = None
    # Whether the patch request holds the resource as it is all the same.
    is_patched_bare: bool = False
    # Fields of the body that only repeat the URL.
    body_identity: Mapping[str, str] = field(default_factory=lambda: {"name": "{name}"})
    create_defaults: Mapping[str, object] = field(default_factory=dict)
    update: str | None = "patch"
    has_update_mask: bool = False
    # Whether the update takes the whole resource, and unsets what it does not hold.
    replaces: bool = False
    setters: Mapping[str, Setter] = field(default_factory=dict)
    immutable: frozenset[str] = frozenset()
    # Field whose value guards against a lost update, and the query parameter it goes to; the body when that is empty.
    guard: str | None = None
    guard_query: str | None = None
    has_operations: bool = True
    # Field that tells the state, with the states that pass and those that are a dead end.
    state_field: str = "state"
    passing_states: frozenset[str] = frozenset()
    failed_states: frozenset[str] = frozenset()
    # Pattern of what its operations fail with for the time being only.
    passing_failure: str | None = None
    # Field that is true while the resource must not be deleted.
    protection: str | None = None
    # Fields that may hold an address' link in place of the address itself.
    address_links: frozenset[str] = frozenset()
    # Kinds that come first although nothing in the body refers to them.
    after: frozenset[str] = frozenset()
    email: str | None = None
    rules: Rules = field(default_factory=Rules)


PARENT_LINKS = {
    "instance": "projects/{project}/instances/{parent}",
    "network": "projects/{project}/global/networks/{parent}",
    "managedZone": "projects/{project}/managedZones/{parent}",
}


def _fields(*names: str) -> frozenset[str]:
    return frozenset(names)


ADDRESS_SETTERS = {"labels": Setter("setLabels", "wrapped", "labelFingerprint")}

KINDS: dict[str, Kind] = {
    "compute.networks": Kind(
        api="compute.v1",
        collection="networks",
        schema="Network",
        immutable=_fields("autoCreateSubnetworks", "description", "IPv4Range", "mtu", "networkProfile"),
        rules=Rules(write_only=_fields("params")),
    ),
    "compute.subnetworks": Kind(
        api="compute.v1",
        collection="subnetworks",
        schema="Subnetwork",
        immutable=_fields("network", "ipCidrRange", "purpose", "description", "ipCollection", "reservedInternalRange"),
        guard="fingerprint",
        setters={"privateIpGoogleAccess": Setter("setPrivateIpGoogleAccess", "wrapped")},
        rules=Rules(keyed={"secondaryIpRanges": "rangeName"}, write_only=_fields("params")),
    ),
    "compute.routers": Kind(
        api="compute.v1",
        collection="routers",
        schema="Router",
        immutable=_fields("network", "encryptedInterconnectRouter", "nccGateway"),
        rules=Rules(
            keyed={"nats": "name", "interfaces": "name", "bgpPeers": "name", "nats.subnetworks": "name"},
            sets=_fields("nats.natIps", "nats.drainNatIps", "nats.endpointTypes"),
            write_only=_fields("params", "md5AuthenticationKeys"),
        ),
    ),
    "compute.firewalls": Kind(
        api="compute.v1",
        collection="firewalls",
        schema="Firewall",
        immutable=_fields("network", "direction"),
        rules=Rules(
            sets=_fields(
                "allowed",
                "allowed.ports",
                "denied",
                "denied.ports",
                "destinationRanges",
                "sourceRanges",
                "sourceServiceAccounts",
                "sourceTags",
                "targetServiceAccounts",
                "targetTags",
            ),
            write_only=_fields("params"),
        ),
    ),
    "compute.addresses": Kind(
        api="compute.v1",
        collection="addresses",
        schema="Address",
        update=None,
        setters=ADDRESS_SETTERS,
        state_field="status",
        passing_states=_fields("RESERVING"),
    ),
    "compute.globalAddresses": Kind(
        api="compute.v1",
        collection="globalAddresses",
        schema="Address",
        update=None,
        setters=ADDRESS_SETTERS,
        state_field="status",
        passing_states=_fields("RESERVING"),
    ),
    # An endpoint of Private Service Connect; those of load balancers were not tried.
    "compute.forwardingRules": Kind(
        api="compute.v1",
        collection="forwardingRules",
        schema="ForwardingRule",
        guard="fingerprint",
        setters=ADDRESS_SETTERS,
        immutable=_fields("IPAddress", "target", "network", "subnetwork", "loadBalancingScheme"),
        address_links=_fields("IPAddress"),
        # It goes before the service behind it.
        after=_fields("sqladmin.instances"),
    ),
    "compute.instances": Kind(
        api="compute.v1",
        collection="instances",
        schema="Instance",
        # Its update wants the whole instance and may restart it; the rest of the fields needs a stop.
        update=None,
        setters={
            "labels": Setter("setLabels", "wrapped", "labelFingerprint"),
            "tags": Setter("setTags", "value"),
            "metadata": Setter("setMetadata", "value"),
            "scheduling": Setter("setScheduling", "value"),
            "deletionProtection": Setter("setDeletionProtection", "query"),
            "shieldedInstanceIntegrityPolicy": Setter("setShieldedInstanceIntegrityPolicy", "value"),
        },
        state_field="status",
        passing_states=_fields("PROVISIONING", "STAGING", "STOPPING", "DEPROVISIONING"),
        protection="deletionProtection",
        address_links=_fields("networkInterfaces.accessConfigs.natIP"),
        rules=Rules(
            keyed={"metadata.items": "key", "serviceAccounts": "email"},
            positional=_fields("disks", "networkInterfaces", "networkInterfaces.accessConfigs"),
            sets=_fields("tags.items", "serviceAccounts.scopes", "resourcePolicies"),
            # Of these gcp_vm changes the type of the machine and the size of its disk.
            write_only=_fields(
                "machineType", "disks.initializeParams", "disks.diskEncryptionKey", "disks.diskSizeGb", "params"
            ),
        ),
    ),
    "compute.disks": Kind(
        api="compute.v1",
        collection="disks",
        schema="Disk",
        # Its update takes none of what is stated here; gcp_vm makes it larger.
        update=None,
        setters={
            **ADDRESS_SETTERS,
            "resourcePolicies": Setter("addResourcePolicies", "members", removal="removeResourcePolicies"),
        },
        state_field="status",
        passing_states=_fields("CREATING", "RESTORING", "DELETING"),
        failed_states=_fields("FAILED"),
        rules=Rules(
            sets=_fields("resourcePolicies"),
            write_only=_fields("params", "sizeGb", "sourceImage", "sourceImageEncryptionKey"),
        ),
    ),
    "compute.resourcePolicies": Kind(
        api="compute.v1",
        collection="resourcePolicies",
        schema="ResourcePolicy",
        has_update_mask=True,
        # https://cloud.google.com/sdk/gcloud/reference/compute/resource-policies/update/snapshot-schedule
        immutable=_fields(
            "snapshotSchedulePolicy.snapshotProperties.chainName",
            "snapshotSchedulePolicy.snapshotProperties.guestFlush",
            "snapshotSchedulePolicy.snapshotProperties.storageLocations",
        ),
        state_field="status",
        passing_states=_fields("CREATING"),
        failed_states=_fields("INVALID"),
    ),
    "sqladmin.instances": Kind(
        api="sqladmin.v1",
        collection="instances",
        schema="DatabaseInstance",
        # A major upgrade of databaseVersion is an operation of its own, with downtime.
        immutable=_fields(
            "databaseVersion",
            "region",
            "instanceType",
            "masterInstanceName",
            "diskEncryptionConfiguration",
            "settings.dataDiskType",
            "settings.collation",
            "settings.ipConfiguration.pscConfig.pscEnabled",
        ),
        guard="settings.settingsVersion",
        passing_states=_fields("PENDING_CREATE", "PENDING_DELETE"),
        failed_states=_fields("FAILED"),
        protection="settings.deletionProtectionEnabled",
        after=_fields("servicenetworking.connections"),
        rules=Rules(
            keyed={"settings.databaseFlags": "name", "settings.ipConfiguration.authorizedNetworks": "value"},
            minimums=_fields("settings.dataDiskSizeGb"),
            sets=_fields("settings.ipConfiguration.pscConfig.allowedConsumerProjects"),
            write_only=_fields("rootPassword", "tags", "includeReplicasForMajorVersionUpgrade", "skipPrecheck"),
        ),
    ),
    "sqladmin.databases": Kind(
        api="sqladmin.v1",
        collection="databases",
        schema="Database",
        parent="instance",
        body_identity={"name": "{name}", "instance": "{parent}", "project": "{project}"},
        immutable=_fields("charset", "collation"),
    ),
    "storage.buckets": Kind(
        api="storage.v1",
        collection="buckets",
        schema="Bucket",
        create_query={"project": "{project}"},
        has_operations=False,
        immutable=_fields("location", "customPlacementConfig", "hierarchicalNamespace", "objectRetention"),
        guard="metageneration",
        guard_query="ifMetagenerationMatch",
        rules=Rules(
            sets=_fields(
                "lifecycle.rule",
                "lifecycle.rule.condition.matchesPrefix",
                "lifecycle.rule.condition.matchesStorageClass",
                "lifecycle.rule.condition.matchesSuffix",
            ),
            upper_case=_fields("location"),
        ),
    ),
    "iam.serviceAccounts": Kind(
        api="iam.v1",
        collection="projects.serviceAccounts",
        schema="ServiceAccount",
        full_name="projects/{project}/serviceAccounts/{name}@{project}.iam.gserviceaccount.com",
        create="create",
        wrapper="serviceAccount",
        wrapper_name="accountId",
        body_identity={},
        has_update_mask=True,
        has_operations=False,
        email="{name}@{project}.iam.gserviceaccount.com",
    ),
    "iam.roles": Kind(
        api="iam.v1",
        collection="projects.roles",
        schema="Role",
        full_name="projects/{project}/roles/{name}",
        create="create",
        wrapper="role",
        wrapper_name="roleId",
        is_patched_bare=True,
        body_identity={},
        has_update_mask=True,
        has_operations=False,
        guard="etag",
        rules=Rules(sets=_fields("includedPermissions")),
    ),
    "secretmanager.secrets": Kind(
        api="secretmanager.v1",
        collection="projects.secrets",
        schema="Secret",
        full_name="projects/{project}/secrets/{name}",
        create="create",
        create_query={"secretId": "{name}"},
        body_identity={},
        create_defaults={"replication": {"automatic": {}}},
        has_update_mask=True,
        has_operations=False,
        guard="etag",
        immutable=_fields("replication", "secretType"),
        rules=Rules(keyed={"topics": "name"}, write_only=_fields("ttl", "tags")),
    ),
    "dns.managedZones": Kind(
        api="dns.v1",
        collection="managedZones",
        schema="ManagedZone",
        full_name="projects/{project}/managedZones/{name}",
        create="create",
        has_operations=False,
        immutable=_fields("dnsName", "visibility"),
        rules=Rules(sets=_fields("privateVisibilityConfig.networks")),
    ),
    # Named <domain>./<type>, as in its URL.
    "dns.resourceRecordSets": Kind(
        api="dns.v1",
        collection="resourceRecordSets",
        schema="ResourceRecordSet",
        parent="managedZone",
        create="create",
        body_identity={"name": "{name}", "type": "{type}"},
        has_operations=False,
        address_links=_fields("rrdatas"),
        rules=Rules(sets=_fields("rrdatas")),
    ),
    "servicenetworking.connections": Kind(
        api="servicenetworking.v1",
        collection="services.connections",
        schema="Connection",
        full_name="services/{name}/connections",
        parent="network",
        create="create",
        body_identity={},
        has_update_mask=True,
        immutable=_fields("network"),
        # Until the rights of the service's agent have spread in a new project:
        # https://github.com/hashicorp/terraform-provider-google/issues/14720
        passing_failure="Required 'compute.globalAddresses.list' permission"
        "|Request had invalid authentication credentials",
        after=_fields("compute.globalAddresses"),
        rules=Rules(sets=_fields("reservedPeeringRanges")),
    ),
    "logging.sinks": Kind(
        api="logging.v2",
        collection="projects.sinks",
        schema="LogSink",
        full_name="projects/{project}/sinks/{name}",
        create="create",
        create_query={"uniqueWriterIdentity": "true"},
        has_update_mask=True,
        has_operations=False,
        after=_fields("bigquery.datasets", "storage.buckets"),
        rules=Rules(keyed={"exclusions": "name"}),
    ),
    "logging.metrics": Kind(
        api="logging.v2",
        collection="projects.metrics",
        schema="LogMetric",
        full_name="projects/{project}/metrics/{name}",
        create="create",
        update="update",
        replaces=True,
        has_operations=False,
        immutable=_fields("metricDescriptor.metricKind", "metricDescriptor.valueType"),
        rules=Rules(keyed={"metricDescriptor.labels": "key"}),
    ),
    "bigquery.datasets": Kind(
        api="bigquery.v2",
        collection="datasets",
        schema="Dataset",
        # Its body names it: datasetReference.
        body_identity={},
        has_operations=False,
        immutable=_fields("location", "datasetReference"),
        rules=Rules(sets=_fields("access"), upper_case=_fields("location")),
    ),
    "monitoring.notificationChannels": Kind(
        api="monitoring.v3",
        collection="projects.notificationChannels",
        schema="NotificationChannel",
        full_name="projects/{project}/notificationChannels/{name}",
        name_label_in="userLabels",
        create="create",
        body_identity={},
        has_update_mask=True,
        has_operations=False,
        immutable=_fields("type"),
    ),
    "monitoring.uptimeCheckConfigs": Kind(
        api="monitoring.v3",
        collection="projects.uptimeCheckConfigs",
        schema="UptimeCheckConfig",
        full_name="projects/{project}/uptimeCheckConfigs/{name}",
        name_label_in="userLabels",
        create="create",
        body_identity={},
        has_update_mask=True,
        has_operations=False,
        immutable=_fields("monitoredResource", "resourceGroup", "tcpCheck", "syntheticMonitor"),
        rules=Rules(
            sets=_fields("selectedRegions", "httpCheck.acceptedResponseStatusCodes"),
            write_only=_fields("httpCheck.authInfo.password"),
        ),
    ),
    "monitoring.alertPolicies": Kind(
        api="monitoring.v3",
        collection="projects.alertPolicies",
        schema="AlertPolicy",
        full_name="projects/{project}/alertPolicies/{name}",
        name_label_in="userLabels",
        create="create",
        body_identity={},
        has_update_mask=True,
        has_operations=False,
        after=_fields("monitoring.notificationChannels", "monitoring.uptimeCheckConfigs", "logging.metrics"),
        rules=Rules(
            # Google gives each condition a name.
            positional=_fields("conditions"),
            sets=_fields("notificationChannels", "alertStrategy.notificationPrompts"),
        ),
    ),
    "monitoring.dashboards": Kind(
        api="monitoring.v1",
        collection="projects.dashboards",
        schema="Dashboard",
        full_name="projects/{project}/dashboards/{name}",
        create="create",
        body_identity={"name": "projects/{project}/dashboards/{name}"},
        replaces=True,
        has_operations=False,
        guard="etag",
        rules=Rules(
            # Google adds ids and defaults to widgets.
            positional=_fields("mosaicLayout.tiles", "mosaicLayout.tiles.widget.xyChart.dataSets"),
        ),
    ),
    "serviceusage.services": Kind(
        api="serviceusage.v1",
        collection="services",
        schema="GoogleApiServiceusageV1Service",
        full_name="projects/{project}/services/{name}",
        create="enable",
        body_identity={},
        update=None,
        # https://github.com/hashicorp/terraform-provider-google/issues/14691
        passing_failure=f"{BEING_ACTIVATED}|encountered internal error.*160009",
    ),
}

# What comes by actions or by itself: it is read, and never brought to a shape.
READABLE: dict[str, Kind] = {
    "sqladmin.backupRuns": Kind(
        api="sqladmin.v1",
        collection="backupRuns",
        schema="BackupRun",
        parent="instance",
        body_identity={},
        update=None,
        state_field="status",
    ),
    "compute.snapshots": Kind(
        api="compute.v1",
        collection="snapshots",
        schema="Snapshot",
        update=None,
        state_field="status",
        passing_states=_fields("CREATING", "UPLOADING", "DELETING"),
        failed_states=_fields("FAILED"),
    ),
    **KINDS,
}
