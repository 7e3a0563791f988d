"""Completion of verbs and options by the shell, as a script that needs drift only to be made."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Literal, get_args

from drift.cli import parser_of
from drift.errors import unknown_name
from drift.keywords import by_fields
from drift.verbs import VERBS

Shell = Literal["bash", "zsh", "fish"]


@by_fields()
def completion(shell: Shell) -> str:
    """Print a script by which a shell completes verbs and options.

    Args:
        shell: bash, zsh or fish. In ~/.bashrc: source <(drift completion bash); in ~/.zshrc the same with zsh; in fish:
            drift completion fish > ~/.config/fish/completions/drift.fish.
    """
    if shell not in get_args(Shell):
        raise unknown_name("shell", shell, get_args(Shell), where="drift completion")
    options = {
        name: sorted(
            option
            for action in parser_of(name)._actions
            for option in action.option_strings
            if option.startswith("--") and not option.endswith("+")
        )
        for name in VERBS
    }
    return "\n".join(_fish(options) if shell == "fish" else _bash(options, zsh=shell == "zsh"))


def _bash(options: Mapping[str, list[str]], *, zsh: bool) -> Iterator[str]:
    if zsh:
        yield "autoload -U +X bashcompinit && bashcompinit"
    yield "_drift() {"
    yield '  local words current="${COMP_WORDS[COMP_CWORD]}"'
    yield '  case "${COMP_WORDS[1]}" in'
    for name, known in options.items():
        yield f'    {name}) words="{" ".join(known)}" ;;'
    yield "  esac"
    yield f'  [ "$COMP_CWORD" -eq 1 ] && words="{" ".join(options)}"'
    yield '  COMPREPLY=($(compgen -W "$words" -- "$current"))'
    yield "}"
    yield "complete -o default -F _drift drift"


def _fish(options: Mapping[str, list[str]]) -> Iterator[str]:
    for name, known in options.items():
        summary = VERBS[name].summary.replace("'", "\\'")
        yield f"complete -c drift -n __fish_use_subcommand -a {name} -d '{summary}'"
        for option in known:
            yield f"complete -c drift -n '__fish_seen_subcommand_from {name}' -l {option[2:]}"
