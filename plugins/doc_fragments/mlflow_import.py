"""What the modules that read a source of an import share."""

from __future__ import annotations


class ModuleDocFragment:
    """Documentation of a source and of the server that it is imported into."""

    DOCUMENTATION = r"""
options:
  source:
    description:
      - A folder of MLflow's file store, V(sqlite:///<path>), or the address of an MLflow server.
      - How to log in to that server is read from E(MLFLOW_IMPORT_USERNAME) and E(MLFLOW_IMPORT_PASSWORD), or from
        E(MLFLOW_IMPORT_TOKEN). They are neither a parameter nor a result.
    type: str
    required: true
  artifact_dir:
    description:
      - Where the artifacts of a folder or an sqlite file are, unless in the places that the runs recorded.
      - It holds a folder for each experiment's id.
    type: str
    default: ""
  url:
    description: Address of the server to import into, such as V(https://mlflow.example.com).
    type: str
    required: true
  project:
    description: Google Cloud project of the secret.
    type: str
    required: true
  admin_password_secret:
    description:
      - Id of the secret that holds the administrator's password, read with the application default credentials.
      - The password is neither a parameter nor a result.
    type: str
    required: true
  admin_username:
    description: Name of the administrator.
    type: str
    default: admin
notes:
  - Honours E(HTTPS_PROXY), E(NO_PROXY) and E(REQUESTS_CA_BUNDLE).
requirements:
  - google-auth
  - mlflow
  - requests
"""
