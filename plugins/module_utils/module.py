"""What the Google Cloud modules of this collection share around their work."""

from __future__ import annotations

from collections.abc import Callable

from ansible.module_utils.basic import AnsibleModule, missing_required_lib
from ansible_collections.mlops.mlflow_gcp.plugins.module_utils.discovery import Json
from ansible_collections.mlops.mlflow_gcp.plugins.module_utils.report import PartialError
from ansible_collections.mlops.mlflow_gcp.plugins.module_utils.session import MISSING_LIBRARY, CloudError, Session


def run(module: AnsibleModule, *steps: Callable[[Session], Json]) -> None:
    """Do the steps in one session and end the module with what they did, or with the message of the first failure.

    A step after one that failed is not begun; what was done until then is in the result.
    """
    if MISSING_LIBRARY:
        module.fail_json(msg=missing_required_lib(MISSING_LIBRARY))
    warnings: list[str] = []
    failure: CloudError | None = None
    result: Json = {}
    try:
        cloud = Session(
            module.params["project"],
            check_mode=module.check_mode,
            timeout_seconds=module.params.get("timeout_seconds", 600),
        )
        warnings = cloud.warnings
        for step in steps:
            result = _joined(result, step(cloud))
    except PartialError as error:
        result, failure = _joined(result, error.result), error
    except CloudError as error:
        failure = error
    # A failure may have its cause in what was warned of.
    for warning in dict.fromkeys(warnings):
        module.warn(warning)
    if failure:
        module.fail_json(msg=failure.told(), **result)
    module.exit_json(**result)


def _joined(first: Json, second: Json) -> Json:
    """Return the results of two steps as one."""
    if not first:
        return second
    lists = {key: [*first[key], *second[key]] for key in ("changes", "diff")}
    return {**first, **second, "changed": first["changed"] or second["changed"], **lists}
