"""Chat templates tried where they may hang: in a process of its own, with little time, memory and text."""

from __future__ import annotations

import functools
import json
import re
import subprocess
import sys

from drift.errors import PolicyError

SECONDS = 3
MEGABYTES = 512
# No template says so much of two words; and what it adds to a conversation grows with it.
MOST_TEXT = 200_000
MOST_TEXT_PER_CHARACTER = 50
_TOO_MUCH = 3
# Nothing but jinja2 is imported there; whether the template is right is seen by whoever renders it.
_PROGRAM = f"""
import json, resource, sys
resource.setrlimit(resource.RLIMIT_CPU, ({SECONDS}, {SECONDS}))
resource.setrlimit(resource.RLIMIT_AS, ({MEGABYTES} << 20, {MEGABYTES} << 20))
from jinja2 import ext, sandbox
class Generation(ext.Extension):
    tags = {{"generation"}}
    def parse(self, parser):
        next(parser.stream)
        return parser.parse_statements(["name:endgeneration"], drop_needle=True)
def refuse(message):
    raise ValueError(message)
environment = sandbox.ImmutableSandboxedEnvironment(
    trim_blocks=True, lstrip_blocks=True, extensions=[Generation, ext.loopcontrols])
environment.filters["tojson"] = lambda value, **more: json.dumps(value)
environment.globals["raise_exception"] = refuse
environment.globals["strftime_now"] = lambda form: form
given = json.load(sys.stdin)
for messages in given["conversations"]:
    length = 0
    try:
        template = environment.from_string(given["template"])
        for part in template.generate(messages=messages, add_generation_prompt=True, bos_token="", eos_token=""):
            length += len(part)
            if length > {MOST_TEXT}:
                sys.exit({_TOO_MUCH})
    except MemoryError:
        sys.exit({_TOO_MUCH})
    except Exception:
        pass
"""
_ASKED = {"role": "user", "content": "Hello?"}
_CONVERSATIONS = [
    [_ASKED],
    [{"role": "system", "content": "x"}, _ASKED, {"role": "assistant", "content": "Hi."}, _ASKED],
]


# What a template can grow with; without it, and with one loop, it takes as long as its text and the conversation are.
_TAGS = re.compile(r"{%-?|-?%}")
_GROWS = re.compile(
    r"range|[*~%]\s*[\w('\"]|macro|\bset\b|recursive|lipsum|\|[^|]*\("
    r"|\.(?:format|join|center|replace|expand|zfill|.?just)"
)


@functools.lru_cache(maxsize=64)
def check_template(template: str, source: str) -> None:
    """Render two small conversations in a process that may hang, swell or overflow in this one's place.

    Args:
        template: a chat template that somebody wrote.
        source: how messages name the model that it comes with.

    Raises:
        PolicyError: it takes more than seconds, more memory than any template, or writes more than any would.
    """
    if template.count("{% for") + template.count("{%- for") < 2 and not _GROWS.search(_TAGS.sub("", template)):
        return
    given = json.dumps({"template": template, "conversations": _CONVERSATIONS})
    command = [sys.executable, "-I", "-c", _PROGRAM]
    try:
        ended = subprocess.run(
            command, input=given.encode(), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, timeout=12 * SECONDS
        ).returncode
    except subprocess.TimeoutExpired:
        ended = -1
    if ended == _TOO_MUCH or ended < 0:
        what = f"{MOST_TEXT:,} characters, or {MEGABYTES} MB" if ended == _TOO_MUCH else f"{SECONDS} seconds"
        raise PolicyError(
            f"the chat template of {source!r} takes more than {what} for a conversation of four messages. "
            "Use the template that the model was trained with."
        )
