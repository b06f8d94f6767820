"""Several resources at once: reads side by side, changes in the order of the references between the members."""

from __future__ import annotations

from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from graphlib import CycleError, TopologicalSorter

from ansible_collections.mlops.mlflow_gcp.plugins.module_utils.discovery import Json, method
from ansible_collections.mlops.mlflow_gcp.plugins.module_utils.drift import normalise_link
from ansible_collections.mlops.mlflow_gcp.plugins.module_utils.reference import among, problems, referred, resolved
from ansible_collections.mlops.mlflow_gcp.plugins.module_utils.report import batch_result
from ansible_collections.mlops.mlflow_gcp.plugins.module_utils.resource import Plan, Resource, Wanted, resource_of
from ansible_collections.mlops.mlflow_gcp.plugins.module_utils.session import (
    THREADS,
    ApiError,
    CloudError,
    Session,
)

Outcome = tuple[Plan, Json | None]


class Batch:
    """Resources of one run. `state` holds each one as it is now, once it has been read or changed."""

    def __init__(self, cloud: Session, resources: list[Resource]) -> None:
        self.cloud = cloud
        self.resources = resources
        self.by_alias = {alias: resource for resource in resources for alias in resource.aliases}
        self.by_name = {resource.name: resource for resource in resources}
        self.state: dict[Resource, Json | None] = {}
        self.failures: dict[Resource, CloudError] = {}
        self.outcomes: dict[Resource, Outcome] = {}

    def read(self) -> None:
        """Read every member once. One whose service this batch enables is read when its turn comes."""
        services = {resource: self._service(resource) for resource in self.resources}
        with ThreadPoolExecutor(THREADS) as pool:
            list(pool.map(self._read, [r for r, service in services.items() if service is None]))
            # A service that is enabled already holds nothing up.
            ready = [
                r for r, service in services.items() if service and (self.cloud.check_mode or self.state.get(service))
            ]
            list(pool.map(self._read, ready))

    def _read(self, resource: Resource) -> None:
        try:
            self.state[resource] = resource.read()
        except CloudError as error:
            self.failures[resource] = error

    def _service(self, resource: Resource) -> Resource | None:
        """Return the member that enables the API this one needs."""
        host = resource.kind.api.split(".")[0] + ".googleapis.com"
        link = f"projects/{self.cloud.project}/services/{host}"
        found = self.by_alias.get(link)
        return found if found is not resource and resource.wanted.kind != "serviceusage.services" else None

    def dependencies(self) -> dict[Resource, set[Resource]]:
        """Return for each member those that have to be done first.

        A resource follows what its body refers to. A resource that goes follows whatever refers to it still.
        """
        needs: dict[Resource, set[Resource]] = {resource: set() for resource in self.resources}
        for resource in self.resources:
            service = self._service(resource)
            if service and service.wanted.state == "present":
                needs[resource].add(service)
            elif service:
                needs[service].add(resource)
            links = {*resource.references(resource.body), *resource.parent_links}
            for other in self._members(links, resource):
                if resource.wanted.state == "present" and other.wanted.state == "present":
                    needs[resource].add(other)
            needs[resource] |= {self.by_name[name] for name in referred(resource.body)} - {resource}
            still_referred = {*resource.references(self.state.get(resource) or {}), *resource.parent_links}
            for other in self._members(still_referred, resource):
                if other.wanted.state == "absent":
                    needs[other].add(resource)
            if resource.wanted.state == "absent":
                # An instance holds an address by its number; only the address tells whose it is.
                users = (self.state.get(resource) or {}).get("users", [])
                needs[resource] |= self._members({normalise_link(user, self.cloud.project) for user in users}, resource)
            for other in self.resources:
                if other.wanted.kind in resource.kind.after and other.wanted.state == resource.wanted.state:
                    first, then = (other, resource) if resource.wanted.state == "present" else (resource, other)
                    needs[then].add(first)
        return needs

    def _members(self, texts: set[str], but: Resource) -> set[Resource]:
        found = {self.by_alias[text] for text in texts if text in self.by_alias}
        return found - {but}

    def run(self) -> None:
        """Bring every member to its wanted state, each as soon as those before it are done."""
        needs = self.dependencies()
        order = TopologicalSorter(needs)
        try:
            order.prepare()
        except CycleError as error:
            circle = ", ".join(resource.title for resource in error.args[1][:-1])
            raise CloudError(f"These refer to each other in a circle: {circle}") from error
        running: dict[Future[None], Resource] = {}
        with ThreadPoolExecutor(THREADS) as pool:
            while order.is_active():
                for resource in order.get_ready():
                    running[pool.submit(self._ensure, resource, needs[resource])] = resource
                finished, _ = wait(running, return_when=FIRST_COMPLETED)
                for future in finished:
                    future.result()
                    order.done(running.pop(future))

    def _ensure(self, resource: Resource, needs: set[Resource]) -> None:
        failed = sorted((other for other in needs if other in self.failures), key=lambda other: other.title)
        if resource in self.failures:
            return
        if failed:
            skipped = f"{resource.title}: not attempted, as it needs {', '.join(other.title for other in failed)}"
            self.failures[resource] = CloudError(skipped, self.failures[failed[0]].more)
            return
        try:
            if resource not in self.state:
                self.state[resource] = resource.read()
            find = among(_members(self), check_mode=self.cloud.check_mode)
            resource.body = resolved(resource.body, find)
            plan, after = resource.ensure(self.state[resource], self._lookup)
            self.state[resource] = after
            self.outcomes[resource] = (plan, after)
        except CloudError as error:
            self.failures[resource] = error

    def _lookup(self, link: str) -> Json | None:
        """Return the resource of a Compute Engine link, from the batch where it is a member."""
        if link in self.by_alias:
            return self.state.get(self.by_alias[link])
        project, *_, collection, name = link.removeprefix("projects/").split("/")
        collection = "globalAddresses" if "/global/addresses/" in link else collection
        get = method("compute.v1", collection, "get")
        parameters = {key: link.split("/")[3] for key in get.path_parameters} | {"project": project}
        parameters[get.path_parameters[-1]] = name
        try:
            return self.cloud.call(get, parameters, f"Reading {link}")
        except ApiError as error:
            if error.status == 404 or (error.service_disabled and self.cloud.check_mode):
                return None
            raise


def ensure_all(cloud: Session, wanted: list[Wanted], policies: list[Json] | None = None) -> Json:
    """Bring all resources to their wanted state and return the module's result.

    Everything is checked before the first call, what `policies` refer to included. Raises PartialError when some
    members failed, CloudError when nothing was attempted.
    """
    resources = [resource_of(cloud, one) for one in wanted]
    wrong = [problem for resource in resources for problem in resource.problems]
    links = [resource.link for resource in resources]
    names = [resource.name for resource in resources if resource.wanted.state == "present"]
    wrong += [f"{r.title}: is in the batch twice" for r in resources if links.count(r.link) > 1]
    wrong += [f"{r.title}: {problem}" for r in resources for problem in problems(r.body, names)]
    wrong += [f"IAM policies: {problem}" for problem in problems(policies, names)]
    if wrong:
        raise CloudError("\n".join(dict.fromkeys(wrong)))
    batch = Batch(cloud, resources)
    batch.read()
    batch.run()
    failures = [batch.failures[resource] for resource in resources if resource in batch.failures]
    return batch_result("resources", _members(batch), failures, lambda member: f"{member['kind']} {member['name']}")


def _members(batch: Batch) -> list[Json]:
    members: list[Json] = []
    for resource in batch.resources:
        if resource in batch.outcomes:
            plan, after = batch.outcomes[resource]
            members.append(
                {
                    "kind": resource.wanted.kind,
                    "name": resource.wanted.name,
                    "changed": plan.action != "none",
                    "action": plan.action,
                    "differences": [difference._asdict() for difference in plan.differences],
                    "resource": after,
                }
            )
    return members
