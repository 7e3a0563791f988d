"""Keys and passwords: kept out of settings, which are written down, and out of what is said about an error."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping

from drift.errors import ConfigError

HIDDEN = "***"
# What stands between :// and the last @ before the path: a user's name, and mostly a password.
_USER = re.compile(r"(?<=://)[^/?#\s'\"]+(?=@)")
_SECRET_NAMES = frozenset(
    {"api_key", "apikey", "password", "passwd", "secret", "access_token", "auth_token", "authorization", "bearer"}
)
_SECRET_VARIABLE = re.compile(r"(?:^|_)(?:KEY|APIKEY|TOKEN|SECRET|PASSWORD|PASSWD|CREDENTIALS)(?:$|_)", re.IGNORECASE)
# What is shorter is as likely a word.
_SHORTEST = 8


def refuse_secrets(settings: object, where: str) -> None:
    """Raise ``ConfigError`` for settings that hold a key or an address with a password, which would be written down.

    Args:
        settings: of a policy, an environment or a verifier, however nested.
        where: how messages call them.
    """
    if isinstance(settings, Mapping):
        for key, value in settings.items():
            if str(key).lower().replace("-", "_") in _SECRET_NAMES and value:
                raise ConfigError(
                    f"{where}.{key}: a secret, which recipes and manifests would keep. Put it into an environment "
                    "variable; key_env names the one that a policy reads."
                )
            refuse_secrets(value, f"{where}.{key}")
    elif isinstance(settings, list | tuple):
        for at, value in enumerate(settings):
            refuse_secrets(value, f"{where}[{at}]")
    elif isinstance(settings, str) and _USER.search(settings):
        raise ConfigError(
            f"{where}: got {scrubbed(settings)!r}, expected an address without a user name and password, which recipes "
            "and manifests would keep. Put the key into an environment variable; key_env names the one that is read."
        )


def scrubbed(text: str) -> str:
    """``text`` without users and passwords of addresses, and without the values of variables that hold keys."""
    for value in sorted(_secrets(), key=len, reverse=True):
        text = text.replace(value, HIDDEN)
    return _USER.sub(HIDDEN, text)


def _secrets() -> set[str]:
    """Values of this process's environment variables whose names say that they are secret."""
    return {value for name, value in os.environ.items() if _SECRET_VARIABLE.search(name) and len(value) >= _SHORTEST}
