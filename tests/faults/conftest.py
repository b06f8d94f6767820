"""What the integration tests share serves here as well."""

from tests.integration.conftest import environment, play

__all__ = ["environment", "play"]
