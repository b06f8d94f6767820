"""What the integration tests share serves here as well."""

from tests.integration.conftest import cloud, deployment, environment, play, tracking

__all__ = ["cloud", "deployment", "environment", "play", "tracking"]
