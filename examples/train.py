"""Train a small scikit-learn model with the MLflow client, register it, load it back, and predict.

Reads what every MLflow client reads: MLFLOW_TRACKING_URI, MLFLOW_TRACKING_USERNAME, MLFLOW_TRACKING_PASSWORD,
REQUESTS_CA_BUNDLE. With MLFLOW_ARTIFACT_BUCKET and Google credentials it also shows the objects in the bucket.
"""

import os
import sys
import warnings
from urllib.parse import quote

import google.auth
import google.auth.transport.requests
import mlflow
import mlflow.sklearn
from sklearn.datasets import load_iris
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import accuracy_score, log_loss
from sklearn.model_selection import train_test_split

EXPERIMENT = "iris"
MODEL = "iris-classifier"
PARAMETERS = {"C": 0.5, "max_iter": 500}
STORAGE = "https://storage.googleapis.com/storage/v1"

# The only integers here are the classes, and none of those is ever missing.
warnings.filterwarnings("ignore", message="Hint: Inferred schema contains integer column")


def say(text: str) -> None:
    """Show progress at once, also through a pipe."""
    print(f"    {text}", flush=True)


def objects_in_bucket(bucket: str, prefix: str) -> list[str]:
    """Return the gs:// addresses under a prefix, as Cloud Storage itself lists them."""
    credentials, _project = google.auth.default(scopes=["https://www.googleapis.com/auth/devstorage.read_only"])
    session = google.auth.transport.requests.AuthorizedSession(credentials)
    response = session.get(f"{STORAGE}/b/{quote(bucket)}/o", params={"prefix": prefix}, timeout=60)
    response.raise_for_status()
    return [f"gs://{bucket}/{item['name']} ({item['size']} bytes)" for item in response.json().get("items", [])]


def train() -> str:
    """Train and log one model; return its artifacts' address, mlflow-artifacts:/<path in the bucket>."""
    features, labels = load_iris(return_X_y=True, as_frame=True)
    split = train_test_split(features, labels, test_size=0.3, random_state=7, stratify=labels)
    train_features, test_features, train_labels, test_labels = split

    mlflow.set_experiment(EXPERIMENT)
    with mlflow.start_run(run_name="logistic-regression") as run:
        say(f"run {run.info.run_id} in experiment {EXPERIMENT}")
        mlflow.log_params(PARAMETERS)
        model = LogisticRegression(**PARAMETERS).fit(train_features, train_labels)
        metrics = {
            "accuracy": float(accuracy_score(test_labels, model.predict(test_features))),
            "log_loss": float(log_loss(test_labels, model.predict_proba(test_features))),
        }
        mlflow.log_metrics(metrics)
        say("logged " + ", ".join(f"{name} {value:.3f}" for name, value in metrics.items()))
        logged = mlflow.sklearn.log_model(
            model, name="model", registered_model_name=MODEL, input_example=train_features.head(2)
        )
    version = logged.registered_model_version
    say(f"registered {MODEL} version {version}")

    loaded = mlflow.sklearn.load_model(f"models:/{MODEL}/{version}")
    predicted = loaded.predict(test_features)
    if list(predicted) != list(model.predict(test_features)):
        sys.exit("The model that came back from the registry predicts something else than the one that went in.")
    names = load_iris().target_names
    say(f"loaded models:/{MODEL}/{version} back; its first predictions: {', '.join(names[predicted[:5]])}")
    return str(mlflow.get_logged_model(logged.model_id).artifact_location)


def main() -> None:
    """Train, then show where the bytes are."""
    if not os.environ.get("MLFLOW_TRACKING_URI"):
        sys.exit("Set MLFLOW_TRACKING_URI, such as https://mlflow.example.com, MLFLOW_TRACKING_USERNAME and _PASSWORD.")
    say(f"server {os.environ['MLFLOW_TRACKING_URI']}, MLflow client {mlflow.__version__}")
    location = train()
    bucket = os.environ.get("MLFLOW_ARTIFACT_BUCKET")
    if bucket:
        path = location.removeprefix("mlflow-artifacts:/").removeprefix(f"gs://{bucket}/")
        found = objects_in_bucket(bucket, path)
        if not found:
            sys.exit(f"Nothing arrived in gs://{bucket} under {location}.")
        for address in found:
            say(address)


if __name__ == "__main__":
    main()
