"""Errors in the shape Google's APIs give them."""

from typing import Any

_NAMES = {
    400: ("INVALID_ARGUMENT", "invalid"),
    401: ("UNAUTHENTICATED", "authError"),
    403: ("PERMISSION_DENIED", "forbidden"),
    404: ("NOT_FOUND", "notFound"),
    409: ("ALREADY_EXISTS", "alreadyExists"),
    412: ("FAILED_PRECONDITION", "conditionNotMet"),
    416: ("OUT_OF_RANGE", "requestedRangeNotSatisfiable"),
    429: ("RESOURCE_EXHAUSTED", "rateLimitExceeded"),
    500: ("INTERNAL", "internalError"),
    501: ("UNIMPLEMENTED", "notImplemented"),
    503: ("UNAVAILABLE", "backendError"),
}


class ApiError(Exception):
    """A refusal: HTTP code, message, and the `reason` and `status` words that clients look at."""

    def __init__(
        self,
        code: int,
        message: str,
        reason: str | None = None,
        status: str | None = None,
        details: list[dict[str, Any]] | None = None,
    ) -> None:
        super().__init__(message)
        name, default_reason = _NAMES.get(code, ("UNKNOWN", "unknown"))
        self.code = code
        self.message = message
        self.reason = reason or default_reason
        self.status = status or name
        self.details = details or []

    def body(self) -> dict[str, Any]:
        """Return `{"error": {code, message, errors, status, details?}}`, which every Google client can read."""
        error: dict[str, Any] = {
            "code": self.code,
            "message": self.message,
            "errors": [{"message": self.message, "domain": "global", "reason": self.reason}],
            "status": self.status,
        }
        if self.details:
            error["details"] = self.details
        return {"error": error}


def invalid(field: str, value: object, why: str) -> ApiError:
    """Compute Engine's wording for a bad field."""
    return ApiError(400, f"Invalid value for field '{field}': '{value}'. {why}")


def not_found(resource: str) -> ApiError:
    """Compute Engine's wording for what does not exist."""
    return ApiError(404, f"The resource '{resource}' was not found")
