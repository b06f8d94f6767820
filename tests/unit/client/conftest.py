from tests.unit.emulator.conftest import backend, cloud, direct, fresh_state, iap, server_account

__all__ = ["backend", "cloud", "direct", "fresh_state", "iap", "server_account"]
