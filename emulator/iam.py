"""Who calls, and what they may do: keys, tokens, roles and policies.

Conditional bindings are stored and returned, but grant nothing: the emulator evaluates no conditions.
"""

import base64
import fnmatch
import hashlib
import hmac
import json
import re
import time
from typing import Any

import jwt
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import rsa

from emulator import certificates
from emulator.errors import ApiError
from emulator.state import Resource, State, fingerprint, public

TOKEN_SECONDS = 3600
_IMPERSONATION = ["getAccessToken", "getOpenIdToken", "signBlob", "signJwt"]
_OBJECT_USER = ["create", "delete", "get", "list", "restore", "update", "move"]
# The roles that the playbooks grant, and the ones tests use to be refused. Permissions may be globs.
ROLES: dict[str, list[str]] = {
    "roles/owner": ["*"],
    "roles/viewer": ["*.get", "*.list", "*.getIamPolicy"],
    "roles/bigquery.dataOwner": ["bigquery.datasets.*"],
    "roles/cloudkms.admin": ["cloudkms.keyRings.*", "cloudkms.cryptoKeys.*", "cloudkms.cryptoKeyVersions.update"],
    "roles/cloudkms.cryptoKeyEncrypterDecrypter": [
        "cloudkms.cryptoKeyVersions.useToDecrypt",
        "cloudkms.cryptoKeyVersions.useToEncrypt",
    ],
    "roles/cloudsql.client": ["cloudsql.instances.connect", "cloudsql.instances.get"],
    "roles/cloudsql.instanceUser": ["cloudsql.instances.get", "cloudsql.instances.login"],
    "roles/cloudsql.admin": ["cloudsql.*"],
    "roles/cloudsql.viewer": ["cloudsql.*.get", "cloudsql.*.list"],
    "roles/compute.admin": ["compute.*"],
    "roles/compute.networkAdmin": ["compute.networks.*", "compute.subnetworks.*", "compute.routers.*", "compute.*.get"],
    "roles/dns.admin": ["dns.*"],
    "roles/dns.reader": ["dns.*.get", "dns.*.list"],
    "roles/compute.viewer": ["compute.*.get", "compute.*.list"],
    "roles/compute.osLogin": ["compute.instances.get", "compute.instances.osLogin"],
    "roles/compute.osAdminLogin": [
        "compute.instances.get",
        "compute.instances.osLogin",
        "compute.instances.osAdminLogin",
    ],
    "roles/iap.tunnelResourceAccessor": ["iap.tunnelInstances.accessViaIAP"],
    "roles/iam.serviceAccountUser": [
        "iam.serviceAccounts.actAs",
        "iam.serviceAccounts.get",
        "iam.serviceAccounts.list",
    ],
    "roles/iam.serviceAccountTokenCreator": [f"iam.serviceAccounts.{verb}" for verb in _IMPERSONATION],
    "roles/iam.serviceAccountOpenIdTokenCreator": ["iam.serviceAccounts.getOpenIdToken"],
    "roles/iam.serviceAccountAdmin": ["iam.serviceAccounts.*"],
    "roles/logging.configWriter": ["logging.sinks.*", "logging.logMetrics.*"],
    "roles/logging.logWriter": ["logging.logEntries.create", "logging.logEntries.route"],
    "roles/logging.viewer": ["logging.*.list", "logging.*.get"],
    "roles/monitoring.editor": ["monitoring.*"],
    "roles/monitoring.metricWriter": [
        "monitoring.metricDescriptors.*",
        "monitoring.monitoredResourceDescriptors.*",
        "monitoring.timeSeries.create",
    ],
    "roles/monitoring.viewer": ["monitoring.*.list", "monitoring.*.get"],
    "roles/secretmanager.admin": ["secretmanager.*"],
    "roles/secretmanager.secretAccessor": ["secretmanager.versions.access"],
    "roles/secretmanager.viewer": ["secretmanager.*.get", "secretmanager.*.list"],
    "roles/secretmanager.secretVersionAdder": ["secretmanager.versions.add"],
    "roles/serviceusage.serviceUsageConsumer": ["serviceusage.services.use", "serviceusage.services.get"],
    "roles/storage.admin": ["storage.*"],
    "roles/storage.objectAdmin": ["storage.objects.*"],
    "roles/storage.objectUser": [f"storage.objects.{verb}" for verb in _OBJECT_USER],
    "roles/storage.objectCreator": ["storage.objects.create"],
    "roles/storage.objectViewer": ["storage.objects.get", "storage.objects.list"],
    "roles/storage.bucketViewer": ["storage.buckets.get", "storage.buckets.list"],
    "roles/storage.legacyBucketOwner": [
        "storage.buckets.get*",
        "storage.buckets.setIamPolicy",
        "storage.buckets.update",
        "storage.objects.create",
        "storage.objects.delete",
        "storage.objects.list",
    ],
    "roles/storage.legacyBucketWriter": [
        "storage.buckets.get",
        "storage.objects.create",
        "storage.objects.delete",
        "storage.objects.list",
    ],
    "roles/storage.legacyBucketReader": ["storage.buckets.get", "storage.objects.list"],
    "roles/storage.legacyObjectOwner": ["storage.objects.get", "storage.objects.update"],
    "roles/storage.legacyObjectReader": ["storage.objects.get"],
}
# As on the real cloud, a project's owner reaches objects only through the bucket's own policy, and speaks for a
# service account only with a role that says so.
_NOT_OWNERS = ("storage.objects.*", *(f"iam.serviceAccounts.{verb}" for verb in _IMPERSONATION))
_SCOPES = {
    "compute.googleapis.com": "compute",
    "dns.googleapis.com": "ndev.clouddns",
    "storage.googleapis.com": "devstorage",
    "sqladmin.googleapis.com": "sqlservice",
    "logging.googleapis.com": "logging",
    "monitoring.googleapis.com": "monitoring",
    "iam.googleapis.com": "iam",
    "iamcredentials.googleapis.com": "iam",
    "cloudresourcemanager.googleapis.com": "cloudplatformprojects",
    "servicenetworking.googleapis.com": "service.management",
    "serviceusage.googleapis.com": "service.management",
}
_MEMBER = re.compile(
    r"allUsers|allAuthenticatedUsers|(user|serviceAccount|group|domain|deleted|principal|principalSet):.+"
)


class Access:
    """Checks tokens and permissions against the state."""

    def __init__(self, state: State) -> None:
        self._state = state

    def add_key(self, email: str, private_key: rsa.RSAPrivateKey) -> str:
        """Registers a service account's key; returns its id."""
        certificate = certificates.self_signed(private_key, email)
        identity = hashlib.sha256(certificate.encode()).hexdigest()[:40]
        self._state.keys[identity] = {"email": email, "certificate": certificate}
        return identity

    def account_exists(self, email: str) -> bool:
        """True when the service account is there."""
        return self._account(email) is not None

    def unique_id(self, email: str) -> str:
        """Return a service account's id, which outlives its e-mail address; the account must be there."""
        account = self._account(email)
        if account is None:
            raise KeyError(email)
        return str(account["uniqueId"])

    def _account(self, email: str) -> Resource | None:
        suffix = f"/serviceAccounts/{email}"
        return next((found for name, found in self._state.resources.items() if name.endswith(suffix)), None)

    def issue_token(self, email: str, scopes: list[str], seconds: int = TOKEN_SECONDS) -> str:
        """Return an opaque access token, which stays good over a restart of the emulator."""
        claims = {"email": email, "scopes": scopes, "exp": int(time.time()) + seconds}
        payload = base64.urlsafe_b64encode(json.dumps(claims).encode()).decode().rstrip("=")
        return f"ya29.{payload}.{self._sign(payload)}"

    def _sign(self, payload: str) -> str:
        return hmac.new(self._state.signing_key.encode(), payload.encode(), hashlib.sha256).hexdigest()

    def read_token(self, token: str) -> dict[str, Any]:
        """Return `{email, scopes, exp}` of an access token or of a self-signed JWT; raises `ApiError` 401."""
        refused = ApiError(
            401,
            "Request had invalid authentication credentials. Expected OAuth 2 access token, login cookie or other "
            "valid authentication credential. See https://developers.google.com/identity/sign-in/web/devconsole-project.",
        )
        if token.startswith("ya29.") and token.count(".") == 2:
            _, payload, signature = token.split(".")
            if not hmac.compare_digest(signature, self._sign(payload)):
                raise refused
            claims: dict[str, Any] = json.loads(base64.urlsafe_b64decode(payload + "=" * (-len(payload) % 4)))
        else:
            try:
                found = self.verify_assertion(token, None)
            except jwt.PyJWTError as error:
                raise refused from error
            scopes = found.get("scope", "").split() or ["https://www.googleapis.com/auth/cloud-platform"]
            claims = {"email": found["sub"], "scopes": scopes, "exp": found["exp"]}
        if claims["exp"] < time.time() or not self.account_exists(claims["email"]):
            raise refused
        return claims

    def verify_assertion(self, assertion: str, audience: str | None) -> dict[str, Any]:
        """Return the claims of a JWT signed with a registered key; raises `jwt.PyJWTError` otherwise."""
        issuer = jwt.decode(assertion, options={"verify_signature": False}).get("iss")
        named = jwt.get_unverified_header(assertion).get("kid")
        for identity, key in self._state.keys.items():
            if key["email"] == issuer and named in (None, identity):
                public_key = x509.load_pem_x509_certificate(key["certificate"].encode()).public_key()
                claims: dict[str, Any] = jwt.decode(
                    assertion,
                    public_key,  # type: ignore[arg-type]
                    algorithms=["RS256"],
                    audience=audience,
                    leeway=30,
                    options={"verify_aud": audience is not None, "require": ["iss", "exp"]},
                )
                return claims
        raise jwt.InvalidKeyError("no such key")

    def check_scope(self, scopes: list[str], service: str) -> None:
        """Raises `ApiError` 403 when the token's scopes do not reach a service."""
        words = [scope.rsplit("/auth/", 1)[-1] for scope in scopes]
        wanted = _SCOPES.get(service)
        if not any(word.startswith("cloud-platform") or (wanted and word.startswith(wanted)) for word in words):
            raise ApiError(
                403,
                "Request had insufficient authentication scopes.",
                reason="insufficientPermissions",
                details=[
                    {
                        "@type": "type.googleapis.com/google.rpc.ErrorInfo",
                        "reason": "ACCESS_TOKEN_SCOPE_INSUFFICIENT",
                        "domain": "googleapis.com",
                        "metadata": {"service": service},
                    }
                ],
            )

    def allowed(self, email: str | None, permission: str, resources: list[str]) -> bool:
        """True when a binding on any of the resources gives the principal a role with the permission."""
        return any(
            self._grants(binding, email, permission, resource)
            for resource in resources
            for binding in self._state.policies.get(resource, {}).get("bindings", [])
        )

    def _grants(self, binding: Resource, email: str | None, permission: str, resource: str) -> bool:
        role = binding["role"]
        if "condition" in binding or not any(fnmatch.fnmatchcase(permission, held) for held in self._permissions(role)):
            return False
        if role == "roles/owner" and any(fnmatch.fnmatchcase(permission, pattern) for pattern in _NOT_OWNERS):
            return False
        members = set(binding["members"])
        names = (
            {"allUsers"}
            if email is None
            else {"allUsers", "allAuthenticatedUsers", f"serviceAccount:{email}", f"user:{email}"}
        )
        if members & names:
            return True
        # `projectOwner:p` stands for whoever is owner of project p.
        owners = [member.removeprefix("projectOwner:") for member in members if member.startswith("projectOwner:")]
        return any(self._is_owner(email, project) for project in owners if not resource.startswith("projects/"))

    def _permissions(self, role: str) -> list[str]:
        """Return what a role holds; a project's own one that is deleted holds nothing."""
        own = self._state.resources.get(f"iam/{role}", {})
        return ROLES.get(role, []) if not own else [] if own.get("deleted") else own.get("includedPermissions", [])

    def _is_owner(self, email: str | None, project: str) -> bool:
        bindings = self._state.policies.get(f"projects/{project}", {}).get("bindings", [])
        return any(
            binding["role"] == "roles/owner" and {f"serviceAccount:{email}", f"user:{email}"} & set(binding["members"])
            for binding in bindings
        )

    def require(self, email: str | None, permission: str, resources: list[str]) -> None:
        """Raises `ApiError` with Google's message unless the principal holds the permission."""
        if self.allowed(email, permission, resources):
            return
        subject = resources[0]
        if permission.startswith("storage."):
            who = email or "Anonymous caller"
            kind = "object" if ".objects." in permission else "bucket"
            message = f"{who} does not have {permission} access to the Google Cloud Storage {kind}."
            raise ApiError(
                403 if email else 401,
                f"{message} Permission '{permission}' denied on resource (or it may not exist).",
                reason="forbidden" if email else "required",
            )
        if permission.startswith("compute."):
            raise ApiError(403, f"Required '{permission}' permission for '{subject}'")
        if permission.startswith("cloudsql."):
            raise ApiError(403, "The client is not authorized to make this request.", reason="notAuthorized")
        raise ApiError(403, f"Permission '{permission}' denied on resource '//{subject}' (or it may not exist).")

    def get_policy(self, resource: str, version: int = 3) -> Resource:
        """Return a resource's policy with its etag; below version 3, conditions show only in the role's name."""
        policy = self._state.policies.get(resource, {})
        shown = {"version": 1, **public(policy), "etag": _etag(policy)}
        if version < 3 and shown["version"] == 3:
            shown["version"] = 1
            shown["bindings"] = [
                {
                    "role": f"{binding['role']}_withcond_{fingerprint(binding['condition'])}",
                    "members": binding["members"],
                }
                if "condition" in binding
                else binding
                for binding in shown["bindings"]
            ]
        return shown

    def set_policy(
        self, resource: str, policy: Resource, update_mask: str | None = None, conflict_code: int = 409
    ) -> Resource:
        """Replaces a resource's policy; raises `ApiError` for a stale etag, an unknown role or member."""
        current = self._state.policies.get(resource, {})
        if policy.get("etag") and policy["etag"] != _etag(current):
            raise ApiError(
                conflict_code,
                "There were concurrent policy changes. Please retry the whole read-modify-write with "
                "exponential backoff.",
                reason="aborted" if conflict_code == 409 else None,
                status="ABORTED" if conflict_code == 409 else None,
            )
        bindings = [binding for binding in policy.get("bindings", []) if binding.get("members")]
        for binding in bindings:
            self._check_binding(binding, policy.get("version", 1))
        masked = [part.strip() for part in (update_mask or "bindings,etag,version").split(",")]
        changed = dict(current)
        changed["_generation"] = current.get("_generation", 0) + 1
        if "bindings" in masked:
            changed["bindings"] = _merged(bindings)
            conditional = any("condition" in binding for binding in bindings)
            changed["version"] = 3 if conditional else 1
        if "auditConfigs" in masked:
            _check_audit_configs(policy.get("auditConfigs", []))
            changed["auditConfigs"] = policy.get("auditConfigs", [])
        self._state.policies[resource] = changed
        return self.get_policy(resource)

    def _check_binding(self, binding: Resource, version: int) -> None:
        role = binding.get("role")
        if role not in ROLES and self._state.resources.get(f"iam/{role}", {"deleted": True}).get("deleted"):
            raise ApiError(400, f"Role {binding.get('role')} is not supported for this resource.")
        if "condition" in binding and version != 3:
            raise ApiError(400, "A policy with conditions must have version 3.")
        for member in binding["members"]:
            kind, _, email = member.partition(":")
            if kind in ("projectOwner", "projectEditor", "projectViewer"):
                continue
            if not _MEMBER.fullmatch(member):
                raise ApiError(400, f"Invalid argument: '{member}' is not a valid member.")
            if kind == "serviceAccount" and email.endswith(".iam.gserviceaccount.com") and not self._account(email):
                raise ApiError(400, f"Service account {email} does not exist.")


def _check_audit_configs(configs: list[Resource]) -> None:
    """Raise `ApiError` 400 for a service named twice or without a kind of access to log."""
    services = [config.get("service", "") for config in configs]
    if len(set(services)) < len(services) or not all(services):
        raise ApiError(400, f"Audit configs must name each service once, not {services}.")
    for config in configs:
        kinds = [log.get("logType") for log in config.get("auditLogConfigs", [])]
        if not kinds or len(set(kinds)) < len(kinds) or not all(kinds):
            raise ApiError(400, f"The audit config of {config['service']} must name each log type once, not {kinds}.")


def _etag(policy: Resource) -> str:
    counted = [policy.get("_generation", 0), policy.get("bindings", [])]
    return base64.b64encode(hashlib.sha256(json.dumps(counted, sort_keys=True).encode()).digest()[:8]).decode()


def _merged(bindings: list[Resource]) -> list[Resource]:
    """One binding for each role and condition, members sorted and unique, as Google returns them."""
    merged: dict[str, Resource] = {}
    for binding in bindings:
        key = json.dumps([binding["role"], binding.get("condition")], sort_keys=True)
        kept = merged.setdefault(key, {**binding, "members": []})
        kept["members"] = sorted({*kept["members"], *binding["members"]})
    return [merged[key] for key in sorted(merged)]
