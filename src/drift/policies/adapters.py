"""LoRA adapters that a running server is told to load, as vLLM can be."""

from __future__ import annotations

import json
import os
from typing import Any
from urllib.error import HTTPError
from urllib.request import Request, urlopen

from drift.errors import ConfigError, PolicyError
from drift.secrets import HIDDEN, hide, scrubbed

# A large adapter on a slow disk takes a while to load.
SECONDS = 300.0
_PROBE = "drift-looks-whether-you-can"
START = "start it as VLLM_ALLOW_RUNTIME_LORA_UPDATING=1 vllm serve MODEL --enable-lora (--max-lora-rank R)"


def check_server(url: str = "http://127.0.0.1:8000/v1", key_env: str = "OPENAI_API_KEY") -> None:
    """Ask a server for an adapter that is not there, which tells whether it could load one.

    Raises:
        ConfigError: it can't.
        PolicyError: no server there.
    """
    status, said = _load(url, key_env, _PROBE, f"/{_PROBE}")
    if _PROBE not in said:
        raise ConfigError(
            f"policy.url: the server at {url} can't be told to load an adapter ({status}: {said}). If it is vLLM, "
            f"{START}; or measure the tuned model elsewhere, as with policy.tuned: {{engine: hf}}."
        )


def load_on_server(adapter: str, url: str = "http://127.0.0.1:8000/v1", key_env: str = "OPENAI_API_KEY") -> str:
    """Have a server load the LoRA adapter in a folder that it can read; returns the name under which it serves it.

    Raises:
        PolicyError: no such adapter, no server there, or it can't load it.
    """
    from drift.policies.stored import adapter_facts

    folder, rank, digest = adapter_facts(adapter)
    name = f"adapter-{digest}"
    status, said = _load(url, key_env, name, str(folder.resolve()))
    if status != 200 and "already been loaded" not in said:
        raise PolicyError(
            f"the server at {url} can't load the adapter {folder} of rank {rank} ({status}: {said}). If it is vLLM, "
            f"{START}, where it can read that folder. Then run the same command again: it goes on where it was."
        )
    return name


def _load(url: str, key_env: str, name: str, path: str) -> tuple[int, str]:
    """Status and words of the server's answer."""
    key = os.environ.get(key_env, "")
    hide(key)
    body: dict[str, Any] = {"lora_name": name, "lora_path": path}
    headers = {"Content-Type": "application/json", **({"Authorization": f"Bearer {key}"} if key else {})}
    request = Request(f"{url.rstrip('/')}/load_lora_adapter", json.dumps(body).encode(), headers)
    try:
        with urlopen(request, timeout=SECONDS) as reply:
            status, said = reply.status, reply.read()
    except HTTPError as error:
        status, said = error.code, error.read()
    except (OSError, ValueError) as error:
        raise PolicyError(
            f"no server at {url}: {scrubbed(str(error))}. Start it, or give its address as policy.url (with /v1)."
        ) from None
    words = " ".join(said.decode(errors="replace").split())
    return status, scrubbed(words.replace(key, HIDDEN) if key else words)[:300]
