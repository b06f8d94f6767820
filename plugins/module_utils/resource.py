"""One resource: reading it, telling what a run would change, and changing it."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

from ansible_collections.mlops.mlflow_gcp.plugins.module_utils import operations
from ansible_collections.mlops.mlflow_gcp.plugins.module_utils.discovery import (
    Json,
    Method,
    Node,
    method,
    methods,
    validate,
)
from ansible_collections.mlops.mlflow_gcp.plugins.module_utils.drift import (
    SECRET_FIELD,
    Comparison,
    Difference,
    mask,
    masked,
    normalise_link,
)
from ansible_collections.mlops.mlflow_gcp.plugins.module_utils.kinds import PARENT_LINKS, READABLE, Setter
from ansible_collections.mlops.mlflow_gcp.plugins.module_utils.reference import KNOWN_AFTER
from ansible_collections.mlops.mlflow_gcp.plugins.module_utils.session import (
    THREADS,
    AmbiguousError,
    ApiError,
    CloudError,
    Session,
)

# How often a change is made anew after somebody else was faster or no answer came.
ATTEMPTS = 7
# A new service account or secret may be unknown to the next read for this long.
VISIBILITY_SECONDS = 60.0
# How long an operation is begun anew that fails for the time being.
PASSING_FAILURE_SECONDS = 300.0
# Label that carries our name of what Google names itself.
NAME_LABEL = "ansible-name"
# How long another run may take to withdraw what two of them made at once.
GIVING_WAY_SECONDS = 5.0

# Finds the resource of a link, None when it does not exist.
Lookup = Callable[[str], Json | None]


@dataclass(frozen=True)
class Wanted:
    """A resource as the inventory states it; the fields are the options of gcp_resource."""

    kind: str
    name: str
    location: str | None = None
    parent: str | None = None
    body: Json = field(default_factory=dict)
    sensitive_body: Json | None = None
    state: str = "present"
    delete_contents: bool = False


@dataclass(frozen=True)
class Plan:
    """What a run would do. `body` is the wanted side with its links resolved, `after` the resource it leads to."""

    action: str
    differences: list[Difference]
    body: Json
    after: Json | None


class Resource:
    """A resource of a kind that behaves as its row in the table says."""

    def __init__(self, cloud: Session, wanted: Wanted) -> None:
        self.cloud = cloud
        self.wanted = wanted
        self.kind = READABLE[wanted.kind]
        self.node = Node.of(self.kind.api, self.kind.schema)
        self.compare = Comparison(self.node, self.kind.rules, cloud.project)
        self.name = (wanted.kind, wanted.name)
        self.title = f"{wanted.kind} {wanted.name}"
        self.problems: list[str] = []
        self.body = self._validated(wanted.body, is_sensitive=False)
        self.sensitive_body = self._validated(wanted.sensitive_body or {}, is_sensitive=True)
        self._check_place()

    # What it is called

    @property
    def scope(self) -> dict[str, str]:
        """Names that make up its URL."""
        return {
            "project": self.cloud.project,
            "name": self.wanted.name,
            "location": self.wanted.location or "",
            "parent": self.wanted.parent or "",
        }

    @property
    def full_name(self) -> str:
        """Name that stands whole in its URL, in the newer APIs."""
        return (self.kind.full_name or "").format(**self.scope)

    @property
    def link(self) -> str:
        """Partial link by which others refer to it."""
        if self.kind.full_name:
            return self.kind.full_name.format(**self.scope)
        return self.method("get").expand(self.parameters("get")).removeprefix("v1/")

    @property
    def aliases(self) -> set[str]:
        """Everything by which others refer to it."""
        return {self.link, self.kind.email.format(**self.scope)} if self.kind.email else {self.link}

    def references(self, value: Any, node: Node | None = None) -> Iterator[str]:
        """Yield the normalised text of every field that may refer to another resource."""
        node = node or self.node
        if isinstance(value, dict):
            for key, content in value.items():
                if not node.child(key).is_output:
                    yield from self.references(content, node.child(key))
        elif isinstance(value, list):
            for element in value:
                yield from self.references(element, node.items)
        elif isinstance(value, str):
            yield normalise_link(value, self.cloud.project)

    @property
    def parent_links(self) -> set[str]:
        """Link of what it belongs to, if anything."""
        return {PARENT_LINKS[self.kind.parent].format(**self.scope)} if self.kind.parent else set()

    def method(self, name: str) -> Method:
        """Return one of its REST methods."""
        return method(self.kind.api, self.kind.collection, name)

    def parameters(self, name: str) -> dict[str, str]:
        """Return the path parameters for one of its REST methods."""
        scope = self.scope
        whole = f"projects/{self.cloud.project}" if name in {"create", "list"} else self.full_name
        known = {"project": scope["project"], "region": scope["location"], "zone": scope["location"]}
        known |= {"+projectId": scope["project"], "+datasetId": scope["name"]}
        if self.kind.parent:
            known[self.kind.parent] = scope["parent"]
        return {
            key: known.get(key, whole if key.startswith("+") else scope.get(key, scope["name"]))
            for key in self.method(name).path_parameters
        }

    # What the inventory says

    def _validated(self, body: Json, *, is_sensitive: bool) -> Json:
        problems: list[str] = []
        validated: Json = validate(self.node, body, "", problems)
        for path in secret_paths(validated):
            if not is_sensitive:
                problems.append(f"{path}: is a secret, move it to sensitive_body, which is never logged")
        if is_sensitive:
            # A message that quoted the value would give it away.
            problems = [f"{problem.split(': ')[0]}: not valid in sensitive_body" for problem in problems]
        self.problems += [f"{self.title}: {problem}" for problem in problems]
        return validated

    def _check_place(self) -> None:
        has_get = "get" in methods(self.kind.api, self.kind.collection)
        needs = self.method("get").path_parameters if has_get else []
        location = next((name for name in needs if name in {"region", "zone"}), None)
        for option, value, owner in (
            ("location", self.wanted.location, location),
            ("parent", self.wanted.parent, self.kind.parent),
        ):
            if owner and not value:
                self.problems.append(f"{self.title}: {option} is missing, the {owner} it belongs to")
            if value and not owner:
                self.problems.append(f"{self.title}: {option} {value!r} has no place in its URL, leave it out")
        pattern = self.node.child("name").schema.get("pattern")
        if pattern:
            problems: list[str] = []
            validate(self.node.child("name"), self.wanted.name, "name", problems)
            self.problems += [f"{self.title}: {problem}" for problem in problems]
        if self.body.get("name", self.wanted.name) != self.wanted.name:
            self.problems.append(f"{self.title}: body.name says {self.body['name']!r}, leave it out")

    # Reading

    def read(self) -> Json | None:
        """Return the resource, None when it does not exist; wait while Google is still making it.

        In check mode it does not exist either while its service is not enabled.
        """
        deadline = self.cloud.clock() + self.cloud.timeout_seconds
        state = None
        for pause in self.cloud.pauses(1.0):
            actual = self._read_now()
            if actual is None and state and (reason := self._why()):
                self.cloud.warnings.append(f"{self.title}: was {state} and is gone{reason}")
            state = (actual or {}).get(self.kind.state_field)
            if state in self.kind.failed_states:
                raise CloudError(
                    f"{self.title}: is in the state {state} for good{self._why()}: delete it, then run again",
                    operations.OperationError.more,
                )
            if state not in self.kind.passing_states or self.cloud.check_mode:
                return actual
            if self.cloud.clock() > deadline:
                late = f"{self.title}: still {state} after {self.cloud.timeout_seconds:.0f} s"
                raise CloudError(late, operations.LATE)
            self.cloud.sleep(min(pause, 10.0))
        raise AssertionError("pauses never end")

    def _read_now(self) -> Json | None:
        try:
            return self.fetch(f"Reading {self.title}")
        except ApiError as error:
            if self.means_absent(error):
                return None
            raise

    def means_absent(self, error: ApiError) -> bool:
        """Whether a refusal to read it says no more than that it does not exist."""
        if error.service_disabled and self.cloud.check_mode:
            self.cloud.warnings.append(f"{error.service} is not enabled: what it keeps counts as absent")
            return True
        return error.status == 404 or (
            error.status == 403 and self.sql_instance is not None and not self._sql_instance_exists()
        )

    def fetch(self, purpose: str) -> Json | None:
        """Return the resource; ApiError with status 404 or None when it does not exist."""
        return self.cloud.call(self.method("get"), self.parameters("get"), purpose)

    @property
    def sql_instance(self) -> str | None:
        """Name of the Cloud SQL instance that it is or belongs to, None for any other kind."""
        return (self.wanted.parent or self.wanted.name) if self.kind.api == "sqladmin.v1" else None

    def _why(self) -> str:
        """Return why a Cloud SQL instance came to nothing, for its state does not tell, or an empty text."""
        reason = operations.last_failure(self.cloud, self.sql_instance) if self.sql_instance else ""
        return f" ({reason})" if reason else ""

    def _sql_instance_exists(self) -> bool:
        """Cloud SQL answers 403 for an instance that does not exist: the list tells."""
        name = self.sql_instance
        listing = method("sqladmin.v1", "instances", "list")
        instances = self.cloud.call(listing, {"project": self.cloud.project}, f"Looking for Cloud SQL instance {name}")
        return any(instance["name"] == name for instance in instances.get("items", []))

    def list_query(self) -> Json:
        """Return the query that narrows the list of its kind to the project."""
        return {"project": self.cloud.project} if "project" in self.method("list").query else {}

    # Planning

    def plan(self, actual: Json | None, lookup: Lookup) -> Plan:
        """Return what brings `actual` to the wanted state; CloudError when a field cannot be changed in place."""
        if self.wanted.state == "absent":
            gone = [] if actual is None else self.losses(actual)
            return Plan("delete" if gone else "none", gone, {}, None)
        body = self._resolved(self.stated_body, lookup, "")
        if actual is None:
            after = self.compare.merged({**self.kind.create_defaults, **body}, {})
            shown = [masked(Difference(key, None, value)) for key, value in after.items()]
            return Plan("create", shown or [Difference("state", "absent", "present")], body, after)
        differences = self.compare.differences(body, actual)
        self._raise_if_immutable(differences)
        return Plan(
            "update" if differences else "none",
            [masked(difference) for difference in differences],
            body,
            self.compare.merged(self.compare.readable(body), actual),
        )

    def losses(self, actual: Json) -> list[Difference]:
        """Return what goes with the resource; CloudError when Google would not let it go."""
        if _at(actual, self.kind.protection):
            raise CloudError(
                f"{self.title}: {self.kind.protection} is on, so it was not deleted;"
                " switch that off in a run of its own, then delete it",
                "docs/failures.md#it-is-kept-from-deletion",
            )
        return [Difference("state", "present", "absent")]

    @property
    def stated_body(self) -> Json:
        """The wanted fields as they are compared and sent."""
        return self.body

    def _resolved(self, value: Any, lookup: Lookup, path: str) -> Any:
        """Return the value with links of addresses replaced by the addresses."""
        if isinstance(value, dict):
            return {k: self._resolved(v, lookup, f"{path}.{k}" if path else k) for k, v in value.items()}
        if isinstance(value, list):
            return [self._resolved(element, lookup, path) for element in value]
        if path in self.kind.address_links and isinstance(value, str) and "/" in value:
            return self._address(normalise_link(value, self.cloud.project), lookup)
        return value

    def _address(self, link: str, lookup: Lookup) -> str:
        found = lookup(link)
        if found and "address" in found:
            return str(found["address"])
        if self.cloud.check_mode:
            return KNOWN_AFTER
        raise CloudError(f"{self.title}: the address {link} does not exist, create it first")

    def _raise_if_immutable(self, differences: list[Difference]) -> None:
        fixed = [masked(difference) for difference in differences if self._is_immutable(_path(difference.field))]
        if fixed:
            fields = "; ".join(f"{one.field} is {_shown(one.before)}, wanted {_shown(one.after)}" for one in fixed)
            raise CloudError(
                f"{self.title}: {fields}. Google cannot change this in place and nothing was changed;"
                " state the present value, or delete the resource yourself before the next run",
                "docs/failures.md#google-cannot-change-this-in-place",
            )

    def _is_immutable(self, path: str) -> bool:
        if path.split(".")[0] in self.kind.setters:
            return False
        parents = {path[:end] for end in [*_dots(path), len(path)]}
        return self.kind.update is None or bool(parents & self.kind.immutable)

    # Changing

    def ensure(self, actual: Json | None, lookup: Lookup) -> tuple[Plan, Json | None]:
        """Bring the resource to the wanted state; return what was done and the resource afterwards.

        After a conflict, a request without an answer, or an operation that fails for the time being, the resource is
        read and compared again, so that what an interrupted run left under way is waited for and not begun a second
        time.
        """
        first = plan = self.plan(actual, lookup)
        if first.action == "none" or self.cloud.check_mode:
            return first, mask(first.after if first.action != "none" else actual)
        deadline = self.cloud.clock() + self.cloud.timeout_seconds
        passing_until = self.cloud.clock() + min(PASSING_FAILURE_SECONDS, self.cloud.timeout_seconds)
        attempt = 0
        for pause in self.cloud.pauses(1.0):
            is_busy = False
            try:
                self._write(plan, actual)
                break
            except operations.OperationError as error:
                if not self._passes(error) or self.cloud.clock() > passing_until:
                    raise
            except (ApiError, AmbiguousError) as error:
                is_busy = isinstance(error, ApiError) and error.busy
                is_conflict = isinstance(error, ApiError) and error.conflict and plan.action != "delete"
                attempt += not is_busy
                # Deleted between reading and changing it, unless it is what it refers to that is not there.
                is_missing = isinstance(error, ApiError) and error.status == 404 and plan.action == "update"
                is_gone = is_missing and self.read() is None
                if not (is_busy or is_conflict or is_gone or isinstance(error, AmbiguousError)):
                    raise
                if attempt >= ATTEMPTS or self.cloud.clock() > deadline:
                    raise
            if is_busy and self.sql_instance:
                operations.settle(self.cloud, self.sql_instance, f"Changing {self.title}")
            self.cloud.sleep(min(pause, 10.0))
            actual = self.read()
            plan = self.plan(actual, lookup)
            if plan.action == "none":
                break
        return first, mask(None if self.wanted.state == "absent" else self._read_back(plan))

    def _passes(self, error: operations.OperationError) -> bool:
        """Whether an operation failed for the time being only."""
        pattern = self.kind.passing_failure
        return pattern is not None and re.search(pattern, str(error)) is not None

    def _read_new(self) -> Json | None:
        """Return the resource, which may have been made a moment ago."""
        visible_by = self.cloud.clock() + VISIBILITY_SECONDS
        for pause in self.cloud.pauses():
            actual = self.read()
            if actual is not None or self.cloud.clock() > visible_by:
                return actual
            self.cloud.sleep(pause)
        raise AssertionError("pauses never end")

    def _read_back(self, plan: Plan) -> Json | None:
        actual = self._read_new()
        left = self.compare.differences(plan.body, actual or {})
        if left:
            fields = ", ".join(difference.field for difference in left)
            self.cloud.warnings.append(
                f"{self.title}: Google did not take over {fields}; the next run will differ again"
            )
        return actual

    def _write(self, plan: Plan, actual: Json | None) -> None:
        if plan.action == "create":
            self.create(plan.body)
        elif plan.action == "delete":
            self.delete(actual or {})
        else:
            self.update(plan.body, actual or {})

    def create(self, body: Json) -> None:
        """Create the resource and wait for it."""
        content = self.compare.merged({**self.kind.create_defaults, **body}, {})
        content = self.compare.merged(self.sensitive_body, content)
        content |= {key: text.format(**self.scope) for key, text in self.kind.body_identity.items()}
        if self.kind.wrapper and self.kind.wrapper_name:
            content = {self.kind.wrapper_name: self.wanted.name, self.kind.wrapper: content}
        self.send(self.kind.create, "Creating", content, self._create_query())

    def _create_query(self) -> Json:
        return {key: text.format(**self.scope) for key, text in self.kind.create_query.items()}

    def update(self, body: Json, actual: Json) -> None:
        """Change what differs: fields with a method of their own one by one, the others in one patch."""
        changes = self.compare.changes(body, actual)
        merged = self.compare.merged(self.compare.readable(body), actual)
        rest = {key: value for key, value in changes.items() if key not in self.kind.setters}
        if rest:
            self._patch(rest, merged, actual)
        # Every setter changes the fingerprint of its own field only.
        for key in sorted(changes.keys() & self.kind.setters.keys()):
            self._set(key, self.kind.setters[key], merged.get(key), actual)

    def _set(self, key: str, setter: Setter, value: Any, actual: Json) -> None:
        value = self.compare.without_outputs(value, self.node.child(key))
        if setter.style == "query":
            self.send(setter.method, f"Setting {key} of", None, {key: str(bool(value)).lower()})
        elif setter.style == "members":
            self._set_members(key, setter, value or [], actual.get(key) or [])
        elif setter.style == "wrapped":
            token = {setter.fingerprint: actual.get(setter.fingerprint)} if setter.fingerprint else {}
            self.send(setter.method, f"Setting {key} of", {key: value, **token})
        else:
            self.send(setter.method, f"Setting {key} of", value or {})

    def _set_members(self, key: str, setter: Setter, wanted: list[str], actual: list[str]) -> None:
        """Take away first: a list may be full."""
        after, before = ({normalise_link(one, self.cloud.project) for one in side} for side in (wanted, actual))
        for name, members in ((setter.removal, before - after), (setter.method, after - before)):
            for member in sorted(members):
                self.send(str(name), f"Setting {key} of", {key: [member]})

    def _patch(self, changes: Json, merged: Json, actual: Json) -> None:
        update = self.kind.update or "patch"
        # What a sink is created with, its update has to repeat.
        query: Json = {key: value for key, value in self._create_query().items() if key in self.method(update).query}
        if self.kind.replaces:
            changes = self.compare.without_outputs(merged)
        for key, described in self.node.fields.items():
            # Some fields must be there although they do not change, a firewall's name for one.
            if self.method(update).id in described.get("annotations", {}).get("required", ()):
                changes = {key: actual.get(key), **changes}
        if self.kind.has_update_mask:
            # The mask names whole fields, so they are sent whole.
            query["updateMask"] = ",".join(changes)
            changes = self.compare.without_outputs({key: merged[key] for key in changes if key in merged})
        guard = self._guard(actual)
        if guard is not None and self.kind.guard_query:
            query[self.kind.guard_query] = guard
        elif guard is not None and self.kind.guard:
            *parents, last = self.kind.guard.split(".")
            target = changes
            for parent in parents:
                target = target.setdefault(parent, {})
            target[last] = guard
        content: Json = changes
        if self.kind.wrapper and not self.kind.is_patched_bare:
            content = {self.kind.wrapper: changes, **query}
            query = {}
        self.send(update, "Changing", content, query)

    def _guard(self, actual: Json) -> Any:
        return _at(actual, self.kind.guard)

    @property
    def delete_query(self) -> Json:
        """Query that deleting takes."""
        return {}

    def delete(self, actual: Json) -> None:
        """Delete the resource and wait until it is gone."""
        del actual
        try:
            self.send("delete", "Deleting", query=self.delete_query)
        except ApiError as error:
            if error.status != 404:
                raise

    def send(self, name: str, verb: str, body: Any = None, query: Mapping[str, Any] | None = None) -> Json:
        """Call one of its methods, wait for the operation it began, and return the answer to the call."""
        purpose = f"{verb} {self.title}"
        answer = self.cloud.call(self.method(name), self.parameters(name), purpose, body, query)
        if self.kind.has_operations:
            operations.wait(self.cloud, self.kind.api, answer, purpose)
        return answer


class Labelled(Resource):
    """A resource whose name Google assigns: ours is in a label, by which it is found in the list of its kind.

    The list is read once for all members of a run. Labels have the form of
    https://cloud.google.com/monitoring/api/ref_v3/rest/v3/projects.alertPolicies#AlertPolicy.FIELDS.user_labels
    """

    def __init__(self, cloud: Session, wanted: Wanted) -> None:
        super().__init__(cloud, wanted)
        self._labels = str(self.kind.name_label_in)
        self._assigned = ""
        self._has_created = False
        if not re.fullmatch(r"[a-z0-9_-]{1,63}", wanted.name):
            self.problems.append(f"{self.title}: name has other characters than lower-case letters, digits, _ and -")

    @property
    def full_name(self) -> str:
        """Name that Google assigned."""
        return self._assigned

    def fetch(self, purpose: str) -> Json | None:
        """Return the resource of that label; CloudError when there are several."""
        if self._assigned:
            return super().fetch(purpose)
        found = self._named(self._list() if self._has_created else self.cloud.once(self.wanted.kind, self._list))
        if len(found) > 1:
            # Of two runs at once, one is about to give way.
            self.cloud.sleep(GIVING_WAY_SECONDS)
            found = self._named(self._list())
        if len(found) > 1:
            names = ", ".join(one["name"] for one in found)
            raise CloudError(
                f"{self.title}: {names} all have the label {NAME_LABEL}={self.wanted.name}, by which it is found;"
                " take the label off, or delete, all but one of them",
                "docs/failures.md#several-have-the-same-label",
            )
        self._assigned = found[0]["name"] if found else ""
        return found[0] if found else None

    def _list(self) -> list[Json]:
        return list(_all(self))

    def _named(self, listed: list[Json]) -> list[Json]:
        return [one for one in listed if (one.get(self._labels) or {}).get(NAME_LABEL) == self.wanted.name]

    @property
    def stated_body(self) -> Json:
        """The body with the label."""
        return {**self.body, self._labels: {**(self.body.get(self._labels) or {}), NAME_LABEL: self.wanted.name}}

    def create(self, body: Json) -> None:
        """Create the resource, unless another run did so at the same time: nothing but the list tells."""
        self._has_created = True
        super().create(body)
        if len(self._named(self._list())) > 1:
            self.delete({})
            self._assigned = ""
            raise ApiError(f"Creating {self.title}", 409, "duplicate", "somebody else made one at the same time")

    def send(self, name: str, verb: str, body: Any = None, query: Mapping[str, Any] | None = None) -> Json:
        """Call one of its methods, one call after the other; the answer to creating has the assigned name.

        https://cloud.google.com/monitoring/api/ref_v3/rest/v3/projects.alertPolicies/create
        """
        with self.cloud.one_at_a_time:
            answer = super().send(name, verb, body, query)
        if name == self.kind.create:
            self._assigned = answer["name"]
        return answer


class Service(Resource):
    """A Google API: present is enabled."""

    def fetch(self, purpose: str) -> Json | None:
        """Return the service when it is enabled."""
        service = super().fetch(purpose)
        return service if service and service.get("state") == "ENABLED" else None

    def list_query(self) -> Json:
        """Return the query for those that are enabled."""
        return {"filter": "state:ENABLED"}

    def create(self, body: Json) -> None:
        """Enable the service."""
        del body
        self.send("enable", "Enabling", {})

    def delete(self, actual: Json) -> None:
        """Disable the service; Google refuses while others depend on it."""
        del actual
        self.send("disable", "Disabling", {})


class Connection(Resource):
    """Private services access: the peering of a network with Google's, which has a list but no get.

    Every request has the network, by the project's number; here it goes by the project's name, which is known before:
    https://cloud.google.com/service-infrastructure/docs/service-networking/reference/rest/v1/services.connections
    """

    def __init__(self, cloud: Session, wanted: Wanted) -> None:
        super().__init__(cloud, wanted)
        network = self.body.get("network", self._network)
        if normalise_link(network, cloud.project) != self._network:
            self.problems.append(f"{self.title}: body.network says {network!r}, parent says {wanted.parent!r}")

    @property
    def link(self) -> str:
        """Name by which the batch knows it; nothing refers to it."""
        return f"services/{self.wanted.name}/connections/{self.wanted.parent}"

    @property
    def _network(self) -> str:
        return f"projects/{self.cloud.project}/global/networks/{self.wanted.parent}"

    @property
    def _numbered_network(self) -> str:
        return f"projects/{self.cloud.project_number()}/global/networks/{self.wanted.parent}"

    def parameters(self, name: str) -> dict[str, str]:
        """Return the service for its collection, the connection itself for the rest."""
        service = f"services/{self.wanted.name}"
        connection = f"{service}/connections/{self.wanted.name.replace('.', '-')}"
        return {"+parent": service, "+name": connection} if name in {"create", "list"} else {"+name": connection}

    def fetch(self, purpose: str) -> Json | None:
        """Return the connection of the network, from the list."""
        answer = self.cloud.call(self.method("list"), self.parameters("list"), purpose, None, self.list_query())
        service = f"services/{self.wanted.name}"
        found = next((c for c in answer.get("connections", []) if c.get("service", service) == service), None)
        return {**found, "network": self._network} if found else None

    def list_query(self) -> Json:
        """Return the query for the connections of the network."""
        return {"network": self._numbered_network}

    def delete(self, actual: Json) -> None:
        """End the peering."""
        del actual
        self.send("deleteConnection", "Deleting", {"consumerNetwork": self._numbered_network})

    def send(self, name: str, verb: str, body: Any = None, query: Mapping[str, Any] | None = None) -> Json:
        """Call one of its methods, a change of its ranges included, with the network."""
        if name != "deleteConnection":
            body = {**body, "network": self._numbered_network}
        return super().send(name, verb, body, query)


class Container(Resource):
    """What Google deletes only when it is empty. `holds` is what its listing and its operator call the contents."""

    holds = ("", "")

    def contents(self) -> Json:
        """Return the first page of what is in it."""
        raise NotImplementedError

    def losses(self, actual: Json) -> list[Difference]:
        """Return what goes with it: the contents are counted as far as one page goes."""
        found = super().losses(actual)
        page = self.contents()
        key, noun = self.holds
        count = len(page.get(key, []))
        if count and not self.wanted.delete_contents:
            raise CloudError(
                f"{self.title}: is not empty, so it was not deleted; set delete_contents, or empty it first",
                "docs/failures.md#it-is-kept-from-deletion",
            )
        shown = f"{count} or more" if page.get("nextPageToken") else str(count)
        return [*found, Difference(noun, shown, "0")] if count else found


class Dataset(Container):
    """A dataset, whose tables go with it when the call says so."""

    holds = ("tables", "tables")

    def contents(self) -> Json:
        """Return the first page of the tables."""
        listing = method("bigquery.v2", "tables", "list")
        return self.cloud.call(listing, self.parameters("get"), f"Listing the tables of {self.title}")

    @property
    def delete_query(self) -> Json:
        """Query that takes the tables away too, where that is wanted."""
        return {"deleteContents": str(self.wanted.delete_contents).lower()}


class Zone(Container):
    """A managed zone, whose record sets go with it but for the two that are the zone's own."""

    holds = ("rrsets", "record sets")

    def contents(self) -> Json:
        """Return the first page of the record sets that are not the zone's own."""
        listing = method("dns.v1", "resourceRecordSets", "list")
        page = self.cloud.call(listing, self.parameters("get"), f"Listing the record sets of {self.title}")
        apex = next((one["name"] for one in page.get("rrsets", []) if one["type"] == "SOA"), "")
        own = [(apex, "SOA"), (apex, "NS")]
        return {**page, "rrsets": [one for one in page.get("rrsets", []) if (one["name"], one["type"]) not in own]}

    def delete(self, actual: Json) -> None:
        """Delete the record sets, then the zone."""
        while items := self.contents()["rrsets"]:
            for item in items:
                parameters = {**self.parameters("get"), "name": item["name"], "type": item["type"]}
                purpose = f"Deleting the record {item['name']} of {self.title}"
                self.cloud.call(method("dns.v1", "resourceRecordSets", "delete"), parameters, purpose)
        super().delete(actual)


class Bucket(Container):
    """A bucket, whose objects go one by one."""

    holds = ("items", "objects")

    def contents(self) -> Json:
        """Return the first page of the objects, every version of each."""
        query = {"versions": "true", "fields": "items(name,generation),nextPageToken"}
        listing = method("storage.v1", "objects", "list")
        return self.cloud.call(
            listing, {"bucket": self.wanted.name}, f"Listing the objects of {self.title}", None, query
        )

    def delete(self, actual: Json) -> None:
        """Delete every version of every object, several at a time, then the bucket."""
        with ThreadPoolExecutor(THREADS) as pool:
            while items := self.contents().get("items", []):
                list(pool.map(self._delete_object, items))
        super().delete(actual)

    def _delete_object(self, item: Json) -> None:
        parameters = {"bucket": self.wanted.name, "object": item["name"]}
        purpose = f"Deleting object {item['name']} of {self.title}"
        try:
            self.cloud.call(
                method("storage.v1", "objects", "delete"), parameters, purpose, None, {"generation": item["generation"]}
            )
        except ApiError as error:
            if error.status != 404:
                raise


class Record(Resource):
    """A DNS record set, whose name and type make up its URL: `mlflow.example.com./A`."""

    @property
    def scope(self) -> dict[str, str]:
        """Names that make up its URL."""
        name, _, kind = self.wanted.name.rpartition("/")
        return {**super().scope, "name": name, "type": kind}

    def update(self, body: Json, actual: Json) -> None:
        """Send the record set whole: there is no token against a lost update."""
        self.send("patch", "Changing", self.compare.without_outputs(self.compare.merged(body, actual)))


class ForwardingRule(Resource):
    """A forwarding rule. An endpoint of Private Service Connect gets its labels only after it was made.

    https://github.com/hashicorp/terraform-provider-google/issues/16255
    """

    def create(self, body: Json) -> None:
        """Create the rule, then set the labels of an endpoint; those that a run leaves unset differ in the next."""
        is_endpoint = "/serviceAttachments/" in (body.get("target") or "")
        later = {key: value for key, value in body.items() if key == "labels" and is_endpoint}
        super().create({key: value for key, value in body.items() if key not in later})
        if later:
            self.update(later, self._read_new() or {})


class DatabaseInstance(Resource):
    """A Cloud SQL instance, whose edition changes with its machine and its data cache alone.

    https://github.com/GoogleCloudPlatform/k8s-config-connector/issues/2907
    """

    def update(self, body: Json, actual: Json) -> None:
        """Change what differs: to the larger edition before the rest, which may need it, to the smaller one after."""
        settings = body.get("settings") or {}
        edition = settings.get("edition")
        if edition and self.compare.differences({"settings": {"edition": edition}}, actual):
            alone = {key: settings[key] for key in ("edition", "tier", "dataCacheConfig") if key in settings}
            rest = {**body, "settings": {key: value for key, value in settings.items() if key not in alone}}
            if edition == "ENTERPRISE":
                super().update(rest, actual)
            self.send("patch", "Changing the edition of", {"settings": alone})
            actual = self.read() or {}
        super().update(body, actual)


class Machine(Resource):
    """A virtual machine, whose external address is what changes of its network while it runs.

    https://cloud.google.com/compute/docs/ip-addresses/configure-static-external-ip-address#assign_new_instance
    """

    def _is_immutable(self, path: str) -> bool:
        return not path.startswith("networkInterfaces.accessConfigs") and super()._is_immutable(path)

    def update(self, body: Json, actual: Json) -> None:
        """Take and give external addresses, of which an interface has one, then change the rest."""
        field, inner = "networkInterfaces", "accessConfigs"
        for wanted, card in zip(body.get(field) or [], actual.get(field) or [], strict=False):
            sides = [{field: [{inner: one.get(inner) or []}]} for one in (wanted, card)]
            if inner not in wanted or not self.compare.differences(*sides):
                continue
            place = {"networkInterface": card["name"]}
            for config in card.get(inner) or []:
                query = {**place, "accessConfig": config["name"]}
                self.send("deleteAccessConfig", "Taking the external address from", None, query)
            for config in wanted[inner] or []:
                self.send("addAccessConfig", "Giving the external address to", config, place)
        super().update({key: value for key, value in body.items() if key != field}, actual)


class Role(Resource):
    """A project's own role. Google keeps a deleted one for a week, and its name for five more.

    https://cloud.google.com/iam/docs/creating-custom-roles#deleting-custom-role
    """

    def fetch(self, purpose: str) -> Json | None:
        """Return the role unless it is deleted."""
        role = super().fetch(purpose)
        return None if role is None or role.get("deleted") else role

    def create(self, body: Json) -> None:
        """Create the role, or take a deleted one back."""
        try:
            super().create(body)
        except ApiError as error:
            if "in a deleted state" not in error.message:
                raise
            self.send("undelete", "Undeleting", {})
            self.update(body, self.read() or {})


SPECIAL = {
    "compute.forwardingRules": ForwardingRule,
    "compute.instances": Machine,
    "sqladmin.instances": DatabaseInstance,
    "iam.roles": Role,
    "bigquery.datasets": Dataset,
    "serviceusage.services": Service,
    "servicenetworking.connections": Connection,
    "storage.buckets": Bucket,
    "dns.managedZones": Zone,
    "dns.resourceRecordSets": Record,
}


def resource_of(cloud: Session, wanted: Wanted) -> Resource:
    """Return the resource with the behaviour of its kind."""
    usual = Labelled if READABLE[wanted.kind].name_label_in else Resource
    return SPECIAL.get(wanted.kind, usual)(cloud, wanted)


def find(
    cloud: Session, kind: str, name: str | None = None, location: str | None = None, parent: str | None = None
) -> list[Json]:
    """Return the resource of that name in a list, or all of the kind; secrets are masked."""
    # Of the connections, those of any service.
    placeholder = "-" if kind == "servicenetworking.connections" else "any"
    resource = resource_of(cloud, Wanted(kind, name or placeholder, location, parent))
    if resource.problems:
        raise CloudError("\n".join(resource.problems))
    if name:
        found = resource.read()
        return [mask(found)] if found else []
    return [mask(one) for one in _all(resource)]


def _all(resource: Resource) -> Iterator[Json]:
    listing = resource.method("list")
    answer_node = Node.of(resource.kind.api, str(listing.response))
    # Where the list has shorter forms of them, it has the collection's name.
    members = next(
        (key for key in answer_node.fields if answer_node.child(key).items.schema.get("id") == resource.kind.schema),
        resource.kind.collection,
    )
    purpose = f"Listing {resource.wanted.kind}"
    for page in resource.cloud.pages(listing, resource.parameters("list"), purpose, resource.list_query()):
        yield from page.get(members, [])


def secret_paths(value: Any, path: str = "") -> Iterator[str]:
    """Yield the path of every field that holds a secret."""
    if isinstance(value, dict):
        for key, content in value.items():
            where = f"{path}.{key}" if path else key
            if SECRET_FIELD.search(key) and content is not None and not isinstance(content, dict):
                yield where
            yield from secret_paths(content, where)
    elif isinstance(value, list):
        for element in value:
            yield from secret_paths(element, path)


def _shown(value: Any) -> str:
    return json.dumps(value)


def _at(value: Any, path: str | None) -> Any:
    """Return what stands at a path of field names, None when nothing does."""
    for part in path.split(".") if path else ["?"]:
        value = (value or {}).get(part)
    return value


def _path(name: str) -> str:
    """Return the path of a named field, without the elements it went through."""
    path, depth = "", 0
    for character in name:
        depth += character == "["
        path += character if depth == 0 else ""
        depth -= character == "]"
    return path


def _dots(path: str) -> list[int]:
    return [index for index, character in enumerate(path) if character == "."]
