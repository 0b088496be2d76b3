"""Secrets that addresses carry (`?token=...`, presigned URLs), taken out of what people and services see: records of runs, reports, params, traces, errors.

Data keeps the whole address, which is needed to fetch it, and so does the uid.
"""

import re
from typing import Any

from vlm_core.errors import ConfigError

HIDDEN = "REDACTED"
_NAMES = (
    "[a-z_-]*token|sig|signature|hmac|secret|client_secret|pass|passwd|password|pwd|auth|authorization|credential|session|sid|jwt"
    "|key|[a-z_-]*api[_-]?key|access[_-]?key(?:[_-]?id)?|policy|x-(?:amz|goog)-(?:signature|credential|security-token)|awsaccesskeyid|googleaccessid|key-pair-id"
)
_PARAMETER = re.compile(rf"([?&;](?:{_NAMES})=)[^&;#\s\"'<>|)\]}}]+", re.I)
_USER = re.compile(r"(\b[a-z][a-z0-9+.-]{1,20}://)[^\s/@\"'<>]{1,400}@", re.I)


def redacted(value: Any) -> Any:
    """A text, or lists and mappings of texts, with the secrets in its addresses replaced; everything else as it is."""
    if isinstance(value, str):
        if "=" in value:
            value = _PARAMETER.sub(rf"\g<1>{HIDDEN}", value)
        return _USER.sub(rf"\g<1>{HIDDEN}@", value) if "://" in value and "@" in value else value
    if isinstance(value, dict):
        return {name: redacted(inner) for name, inner in value.items()}
    if isinstance(value, list | tuple):
        return [redacted(inner) for inner in value]
    return value


def refuse_redacted(value: Any, where: str) -> None:
    """Raises ConfigError for settings of which a secret was taken out: they cannot be run again as they are."""
    if f"={HIDDEN}" in str(value) or f"://{HIDDEN}@" in str(value):
        raise ConfigError(f"Found an address without its secret in {where}, expected the whole one, which no record keeps; give the settings themselves.")
