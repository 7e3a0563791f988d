"""Keys and passwords: kept out of settings, which are written down, and out of what is said about an error."""

from __future__ import annotations

import math
import os
import re
from collections import Counter
from collections.abc import Mapping
from urllib.parse import unquote

from drift.errors import ConfigError

HIDDEN = "***"
_REMEDY = "Put it into an environment variable; key_env names the one that a policy reads."
# What stands between :// and the last @ before the path: a user's name, and mostly a password.
_USER = re.compile(r"(?<=://)[^/?#\s'\"]+(?=@)")
# Names whose value is a secret whatever it is, once in small letters with _ between words: openai_api_key, x_api_key.
_NAMES = re.compile(
    r"(?:^|_)(?:(?:api|access|account|auth|encryption|master|private|secret|service|shared|signing|ssh|subscription)_?key"
    r"|apikey|(?:access|api|auth|bearer|bot|github|gitlab|hf|hub|huggingface|id|jwt|oauth|openai|personal|refresh|secret"
    r"|session|wandb)_?token|pass(?:word|wd|phrase|code)|pwd|(?:client_?)?secret|credentials?|authorization|bearer|cookie"
    r"|connection_string|webhook_?url)s?$"
)
# Names whose value is a secret where it looks like one.
_MAYBE_NAMES = re.compile(r"(?:^|_)(?:key|token|auth|signature|pat|jwt|dsn|login|user|sig|code)$")
# What issuers of keys begin them with, and keys that are whole blocks.
_ISSUED = re.compile(
    r"\b(?:sk|pk|rk)[-_](?:live_|test_|proj-|ant-|or-|svcacct-)?[\w-]{16,}|\bhf_[A-Za-z0-9]{16,}|\bgh[pousr]_\w{20,}"
    r"|\bgithub_pat_\w{20,}|\bglpat-[\w-]{16,}|\bxox[abeoprs]-[\w-]{10,}|\b(?:AKIA|ASIA)[0-9A-Z]{16}\b"
    r"|\bAIza[\w-]{30,}|\bya29\.[\w-]{20,}|\bgsk_\w{20,}|\br8_\w{20,}|\bnpm_\w{30,}|\bpypi-[\w-]{30,}|\bnvapi-[\w-]{20,}"
    r"|\b(?:xai|pplx|fw|esecret|api_org|dckr_pat|lin_api|whsec)[-_][A-Za-z0-9]{16,}|\bdop_v1_\w{20,}"
    r"|\bdapi[0-9a-f]{30,}|\bSG\.[\w-]{16,}\.[\w-]{16,}|\bxapp-[\w-]{10,}|\bAGE-SECRET-KEY-\w+|\b\d{8,10}:AA[\w-]{25,}"
    r"|(?<=hooks\.slack\.com/services/)[\w/]{20,}|-----BEGIN PGP PRIVATE KEY BLOCK-----[^-]*"
    r"|\beyJ[\w-]{8,2000}\.eyJ[\w-]{8,2000}\.[\w-]*"
    r"|-----BEGIN [A-Z ]*PRIVATE KEY-----[^-]*(?:-----END [A-Z ]*PRIVATE KEY-----)?"
    r"|(?<=[Bb]earer )[\w.~+/=-]{16,}|(?<=[Bb]asic )[\w+/=]{16,}"
)
# In an error's text: what is assigned to such a name.
_ASSIGNED = re.compile(
    r"(?<![\w-])([\w-]{0,60}?(?:key|token|secret|pass\w*|pwd|authorization|bearer|cookie|credential|string|url|sig|code)s?)"
    r"(\s*['\"]?\s*[=:]\s*[\[{]?['\"]?(?:(?:bearer|basic|token)\s+)?|['\"],\s*['\"](?:(?:bearer|basic|token)\s+)?)"
    r"([^\s'\",;&?#)}\]]{6,})",
    re.IGNORECASE,
)
_SECRET_VARIABLE = re.compile(
    r"(?:^|_)(?:KEY|APIKEY|TOKEN|PAT|SECRET|PASSWORD|PASSWD|PASSPHRASE|CREDENTIALS?|DSN)(?:$|_)", re.IGNORECASE
)
# What is shorter is as likely a word.
_SHORTEST = 8
# A run of letters and digits as long as this, as random as this, is no word.
_RUN, _BITS = 20, 3.6
# Values of variables that settings name (``hide``).
_hidden: set[str] = set()


def refuse_secrets(settings: object, where: str) -> None:
    """Raise ``ConfigError`` for settings that hold a key or an address with a password, which would be written down.

    A value is taken for a secret by the name of its setting, by what issuers of keys begin them with, or by how random
    it is.

    Args:
        settings: of a policy, an environment or a verifier, however nested.
        where: how messages call them.
    """
    if isinstance(settings, Mapping):
        for key, value in settings.items():
            if _is_secret(str(key), value) or _ISSUED.search(str(key)):
                raise ConfigError(
                    f"{where}.{scrubbed(str(key))}: a secret, which recipes and manifests would keep. {_REMEDY}"
                )
            # A header in two settings: {name: Authorization, value: …}.
            if key == "name" and isinstance(value, str) and _is_secret(value, settings.get("value")):
                raise ConfigError(f"{where}.value: a secret, which recipes and manifests would keep. {_REMEDY}")
            refuse_secrets(value, f"{where}.{key}")
    elif isinstance(settings, list | tuple):
        for at, value in enumerate(settings):
            # An option of a command line, or a header, and what it is given.
            name, after = str(value), settings[at + 1] if at + 1 < len(settings) else None
            named = name.startswith("--") or (len(settings) == 2 and "header" in where)
            if named and _is_secret(name.lstrip("-"), after):
                raise ConfigError(f"{where}[{at + 1}]: a secret, which recipes and manifests would keep. {_REMEDY}")
            refuse_secrets(value, f"{where}[{at}]")
    elif isinstance(settings, str) and _USER.search(settings):
        raise ConfigError(
            f"{where}: got {scrubbed(settings)!r}, expected an address without a user name and password, which recipes "
            "and manifests would keep. Put the key into an environment variable; key_env names the one that is read."
        )
    elif isinstance(settings, str) and (_ISSUED.search(settings) or _is_random(settings) or _assigns(settings)):
        raise ConfigError(
            f"{where}: got what looks like a key, which recipes and manifests would keep. Put it into an environment "
            "variable; key_env names the one that is read."
        )


def scrubbed(text: str) -> str:
    """``text`` without users and passwords of addresses, keys, and the values of variables that hold keys."""
    for value in sorted(_secrets(), key=len, reverse=True):
        text = text.replace(value, HIDDEN)
    text = _ISSUED.sub(HIDDEN, _USER.sub(HIDDEN, text))
    return _ASSIGNED.sub(lambda part: part[1] + part[2] + (HIDDEN if _is_secret(part[1], part[3]) else part[3]), text)


def hide(value: str) -> None:
    """Have ``scrubbed`` take out the value of a variable that settings name, whatever that is called."""
    if len(value) >= _SHORTEST:
        _hidden.add(value)


def _assigns(text: str) -> bool:
    """Whether a text is, or holds, a header, an option, a part of an address or JSON that gives a secret its value.

    Sentences, as of prompts, speak of passwords: there only what stands after ``=`` or in quotes counts.
    """
    whole = len(text.split()) <= 3
    return any(
        _is_secret(part[1].lstrip("-"), part[3]) and (whole or "=" in part[2] or '"' in part[2])
        for part in _ASSIGNED.finditer(unquote(text))
    )


def _is_secret(name: str, value: object) -> bool:
    """Whether the setting ``name`` holds a secret; the name of a variable that does is none."""
    words = re.sub(r"(?<=[a-z0-9])(?=[A-Z])|[-. ]", "_", name).lower()
    if isinstance(value, list | tuple | Mapping):
        return bool(value) and _NAMES.search(words) is not None
    if not value or not isinstance(value, str | bytes | int | float) or isinstance(value, bool):
        return False
    if _NAMES.search(words):
        return True
    return bool(_MAYBE_NAMES.search(words)) and isinstance(value, str) and _is_random(unquote(value), hexadecimal=True)


def _is_random(text: str, *, hexadecimal: bool = False) -> bool:
    """Whether a text is one long run of letters and digits that no word or name is: many kinds, often changing.

    Hashes and revisions, which are hexadecimal, are no secrets but under a name that says so.
    """
    if not re.fullmatch(r"[\w+/=.~-]{20,512}", text, re.ASCII) or text.startswith(("/", ".", "~")):
        return False
    for run in re.findall(rf"[A-Za-z0-9]{{{_RUN},}}", text):
        kinds = [bool(re.search(kind, run)) for kind in ("[a-z]", "[A-Z]", "[0-9]")]
        changes = len(re.findall(r"(?<=[a-z])[A-Z0-9]|(?<=[A-Z])[a-z0-9]|(?<=[0-9])[A-Za-z]", run))
        bits = -sum(n / len(run) * math.log2(n / len(run)) for n in Counter(run).values())
        is_hexadecimal = re.fullmatch(r"[0-9a-f]+|[0-9A-F]+", run) is not None
        if is_hexadecimal and hexadecimal and kinds[2] and bits > 3.0:
            return True
        often = changes * (2.2 if all(kinds) else 3.3) >= len(run)
        if not is_hexadecimal and sum(kinds) >= 2 and kinds[2] and bits > _BITS and often:
            return True
    return False


def _secrets() -> set[str]:
    """Values of this process's environment variables whose names say that they are secret."""
    found = {value for name, value in os.environ.items() if _SECRET_VARIABLE.search(name) and len(value) >= _SHORTEST}
    return found | _hidden
