"""Print the password of MLflow's administrator, read from Secret Manager with the application default credentials."""

import argparse
import base64
import os
import sys

import google.auth
import google.auth.transport.requests


def main() -> None:
    """Print the latest version of the secret."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--project", default=os.environ.get("GOOGLE_CLOUD_PROJECT"))
    parser.add_argument("--secret", default="mlflow-admin-password")
    options = parser.parse_args()
    if not options.project:
        parser.error("name the project: --project, or GOOGLE_CLOUD_PROJECT in the environment")
    credentials, _project = google.auth.default(scopes=["https://www.googleapis.com/auth/cloud-platform"])
    session = google.auth.transport.requests.AuthorizedSession(credentials)
    name = f"projects/{options.project}/secrets/{options.secret}/versions/latest"
    response = session.get(f"https://secretmanager.googleapis.com/v1/{name}:access", timeout=60)
    if not response.ok:
        sys.exit(f"Secret Manager answered {response.status_code} for {name}: is the deployment there? {response.text}")
    print(base64.b64decode(response.json()["payload"]["data"]).decode())


if __name__ == "__main__":
    main()
