"""One custom verb on a resource: what Google does once when asked, and no stated shape can say."""

from __future__ import annotations

from dataclasses import dataclass, field

from ansible_collections.mlops.mlflow_gcp.plugins.module_utils import operations
from ansible_collections.mlops.mlflow_gcp.plugins.module_utils.discovery import Json, Method, Node, methods, validate
from ansible_collections.mlops.mlflow_gcp.plugins.module_utils.drift import Difference, mask, masked
from ansible_collections.mlops.mlflow_gcp.plugins.module_utils.kinds import KINDS, READABLE
from ansible_collections.mlops.mlflow_gcp.plugins.module_utils.report import batch_result
from ansible_collections.mlops.mlflow_gcp.plugins.module_utils.resource import (
    VISIBILITY_SECONDS,
    Resource,
    Wanted,
    find,
    resource_of,
    secret_paths,
)
from ansible_collections.mlops.mlflow_gcp.plugins.module_utils.session import (
    AmbiguousError,
    ApiError,
    CloudError,
    Session,
)

POLICY_METHODS = frozenset({"getIamPolicy", "setIamPolicy", "testIamPermissions"})


@dataclass(frozen=True)
class WantedAction:
    """An action as the playbook states it; the fields are the options of gcp_action."""

    kind: str
    action: str
    name: str | None = None
    location: str | None = None
    parent: str | None = None
    body: Json = field(default_factory=dict)
    unless: Json | None = None


def actions(kind: str) -> set[str]:
    """Return the methods of a kind that change something and are not the work of another module."""
    row = READABLE[kind]
    elsewhere = set(POLICY_METHODS)
    if kind in KINDS:
        elsewhere |= {row.create, "insert", "update", "patch", "delete"}
        elsewhere |= {setter.method for setter in row.setters.values()}
    return {
        name
        for name, described in methods(row.api, row.collection).items()
        if described["httpMethod"] != "GET" and name not in elsewhere
    }


class Condition:
    """What `unless` asks: whether there is, or is not, a resource with certain values."""

    def __init__(self, cloud: Session, action: WantedAction, unless: Json) -> None:
        is_own = unless.get("kind") in {None, action.kind}
        own = action if is_own else WantedAction(unless["kind"], action.action)
        self.cloud = cloud
        self.kind = own.kind
        self.place = {key: unless.get(key) or getattr(own, key) for key in ("name", "location", "parent")}
        self.is_wanted = unless.get("state", "present") == "present"
        self.resource = _resource(cloud, self.kind, **self.place)
        self.problems = [f"unless: {problem}" for problem in self.resource.problems]
        problems: list[str] = []
        self.fields: Json = validate(
            self.resource.node, unless.get("fields") or {}, "unless.fields", problems, allow_outputs=True
        )
        self.problems += problems
        self.label = "state" if is_own else f"{self.kind} {self.place['name'] or self.place['parent'] or ''}".strip()

    def open(self) -> list[Difference]:
        """Return what is missing for the condition to hold; nothing when it holds."""
        try:
            found = find(self.cloud, self.kind, **self.place)
        except ApiError as error:
            if not self.resource.means_absent(error):
                raise
            found = []
        lacks = [self.resource.compare.differences(self.fields, one) for one in found]
        if self.is_wanted and self.place["name"] and found:
            return lacks[0]
        if any(not lack for lack in lacks) == self.is_wanted:
            return []
        sides = ("absent", "present") if self.is_wanted else ("present", "absent")
        return [Difference(self.label, *sides)]


def _resource(cloud: Session, kind: str, name: str | None, location: str | None, parent: str | None) -> Resource:
    # A list has no name to check.
    return resource_of(cloud, Wanted(kind, name or "any", location, parent))


class Action:
    """One action on one resource, or on a collection."""

    def __init__(self, cloud: Session, wanted: WantedAction) -> None:
        self.cloud = cloud
        self.wanted = wanted
        self.resource = _resource(cloud, wanted.kind, wanted.name, wanted.location, wanted.parent)
        self.title = f"{wanted.kind} {wanted.name or wanted.parent or ''}".strip()
        self.purpose = f"{wanted.action} of {self.title}"
        self.condition = Condition(cloud, wanted, wanted.unless) if wanted.unless is not None else None
        self.body: Json | None = None
        self.problems = [*self.resource.problems, *self._verb_problems()]
        if not self.problems:
            self.problems = self._body_problems()
        self.problems += self.condition.problems if self.condition else []

    def _verb_problems(self) -> list[str]:
        verb, known = self.wanted.action, actions(self.wanted.kind)
        if verb not in known:
            return [f"{self.wanted.kind}: has no action {verb}; it has {', '.join(sorted(known)) or 'none'}"]
        called = self.resource.method(verb)
        # Whatever is not the project, a place or the parent goes by the name.
        others = {"project", "zone", "region", self.resource.kind.parent}
        has_name = any(parameter not in others for parameter in called.path_parameters)
        if has_name and not self.wanted.name:
            return [f"{self.purpose}: name is missing"]
        if self.wanted.name and not has_name:
            return [f"{self.purpose}: name {self.wanted.name!r} has no place in its URL, leave it out"]
        return []

    def _body_problems(self) -> list[str]:
        called = self.resource.method(self.wanted.action)
        if called.request is None:
            return [f"{self.purpose}: takes no body, leave it out"] if self.wanted.body else []
        node = Node.of(self.resource.kind.api, called.request)
        problems: list[str] = []
        self.body = validate(node, self.wanted.body, "", problems)
        problems += [f"{path}: is a secret, and an action has no way to keep it" for path in secret_paths(self.body)]
        problems += [
            f"{key}: is missing"
            for key, described in node.fields.items()
            if called.id in described.get("annotations", {}).get("required", ()) and self.body.get(key) is None
        ]
        return [f"{self.purpose}: {problem}" for problem in problems]

    def ensure(self) -> tuple[list[Difference] | None, Json | None]:
        """Do it unless its effect is there; return what it brings about, None for nothing, and Google's answer.

        What is under way on a Cloud SQL instance, an action of an interrupted run for instance, ends first; then
        the condition is asked again. A request that may have landed is never sent twice.
        """
        missing = self._missing()
        if missing == []:
            return None, None
        if self.cloud.check_mode:
            if self.wanted.name and self.resource.read() is None:
                self.cloud.warnings.append(f"{self.purpose}: {self.title} does not exist yet")
            return self._shown(missing), None
        first, deadline = missing, self.cloud.clock() + self.cloud.timeout_seconds
        for pause in self.cloud.pauses(1.0):
            if self._settled():
                missing = self._missing()
                if missing == []:
                    return None, None
            try:
                answer = self._send()
                break
            except ApiError as error:
                if not error.busy or self.cloud.clock() > deadline:
                    raise
            except AmbiguousError as error:
                if self._landed():
                    answer = {}
                    break
                advice = "it may have been carried out, so it was not repeated: look, then run again"
                raise CloudError(f"{error}; {advice}", error.more) from error
            self.cloud.sleep(min(pause, 10.0))
        self._check_effect()
        return self._shown(first), answer

    def _missing(self) -> list[Difference] | None:
        """Return what the condition lacks, None without a condition."""
        return self.condition.open() if self.condition else None

    def _shown(self, missing: list[Difference] | None) -> list[Difference]:
        body = [Difference("body", None, mask(self.body))] if self.body else []
        return [*map(masked, missing or []), *body] or [Difference("action", None, self.wanted.action)]

    def _settled(self) -> bool:
        """Wait for what is under way; return whether anything was."""
        instance = self.resource.sql_instance
        return bool(instance) and operations.settle(self.cloud, str(instance), self.purpose)

    def _send(self) -> Json:
        resource = self.resource
        called = resource.method(self.wanted.action)
        answer = self.cloud.call(called, resource.parameters(called.name), self.purpose, self.body, self._guard(called))
        if called.response == "Operation":
            return operations.wait(self.cloud, resource.kind.api, answer, self.purpose)
        return answer

    def _guard(self, called: Method) -> Json:
        """Return the query by which an action fails when the resource has changed meanwhile, where one is needed."""
        kind = self.resource.kind
        if kind.guard_query not in called.query:
            return {}
        return {str(kind.guard_query): (self.resource.read() or {}).get(str(kind.guard))}

    def _landed(self) -> bool:
        """Whether a request without an answer was carried out all the same, as far as the condition can tell."""
        visible_by = self.cloud.clock() + VISIBILITY_SECONDS
        for pause in self.cloud.pauses(1.0):
            self._settled()
            if self._missing() == []:
                return True
            if self.condition is None or self.cloud.clock() > visible_by:
                return False
            self.cloud.sleep(pause)
        raise AssertionError("pauses never end")

    def _check_effect(self) -> None:
        """Warn when the next run would do it again."""
        visible_by = self.cloud.clock() + VISIBILITY_SECONDS
        for pause in self.cloud.pauses():
            missing = self._missing()
            if not missing:
                return
            if self.cloud.clock() > visible_by:
                break
            self.cloud.sleep(pause)
        fields = ", ".join(difference.field for difference in missing or [])
        self.cloud.warnings.append(
            f"{self.purpose}: done, but unless still lacks {fields}; the next run would repeat it"
        )


def do(cloud: Session, wanted: WantedAction) -> Json:
    """Do the action unless its effect is there and return the module's result."""
    action = Action(cloud, wanted)
    if action.problems:
        raise CloudError("\n".join(action.problems))
    found, answer = action.ensure()
    member = {
        "changed": found is not None,
        "action": wanted.action,
        "differences": [difference._asdict() for difference in found or []],
    }
    result = batch_result("actions", [member], [], lambda _: action.title)
    del result["actions"]
    return {**result, "differences": member["differences"], "answer": mask(answer)}
