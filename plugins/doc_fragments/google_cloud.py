"""Documentation that every Google Cloud module of this collection shares."""

from __future__ import annotations


class ModuleDocFragment:
    """Options, attributes and notes of the modules that call Google Cloud."""

    DOCUMENTATION = r"""
options:
  project:
    description: ID of the Google Cloud project, not its number.
    type: str
    required: true
requirements:
  - google-auth
  - google-api-python-client
  - requests
attributes:
  check_mode:
    description: Predicts every change without making it.
    support: full
  diff_mode:
    description: Shows each differing field before and after; secrets are never part of it.
    support: full
notes:
  - Credentials are Google's application default credentials, as made by C(gcloud auth application-default login)
    or named by E(GOOGLE_APPLICATION_CREDENTIALS).
  - E(HTTPS_PROXY), E(NO_PROXY) and E(REQUESTS_CA_BUNDLE) are honoured.
  - In check mode a service that is not enabled, or a parent that does not exist, counts as absent, with a warning,
    so that an empty project can be predicted.
  - Requests that Google turns away for now (429, 5xx, a broken connection) are repeated with growing pauses
    where repeating is safe.
"""
