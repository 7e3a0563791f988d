"""``drift VERB``: each verb is a function of ``drift``, its options are that function's arguments."""

from __future__ import annotations

import inspect
import os
import re
import signal
import sys
import typing
from argparse import SUPPRESS, ArgumentError
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, is_dataclass
from importlib import import_module
from typing import Any

from jsonargparse import ArgumentParser, Namespace

import drift
from drift.errors import ConfigError, DriftError, unknown_name
from drift.keywords import (
    Option,
    as_declared,
    descriptions_of,
    help_formatter,
    in_words,
    metavar,
    option,
    options_of_record,
)
from drift.progress import leave
from drift.secrets import scrubbed


@dataclass(frozen=True)
class Verb:
    """A verb of the command line.

    Args:
        summary: what it does, in a line.
        function: ``module:function`` that does it.
        positional: arguments that are given without a name.
        example: a command that works.
        first: options that help tells first, in this order.
        record: ``module:class`` whose fields are options too, of a function that takes any keyword.
        shows: function of ``reporting.console`` that prints what came out, instead of the result's own sentences.
    """

    summary: str
    function: str
    positional: tuple[str, ...] = ()
    example: str = ""
    first: tuple[str, ...] = ()
    record: str = ""
    shows: str = ""


# fmt: off
_RECIPE = "drift.recipe:Recipe"
_RECIPE_FIRST = (
    "out", "dry_run", "model", "environment", "seed", "sampling.max_new_tokens", "rollouts.tasks", "rollouts.samples",
    "weights.scheme", "weights.beta", "weights.steps", "training.max_steps", "training.learning_rate",
    "training.batch_size", "evaluation.tasks", "evaluation.samples",
)
_SAMPLE_FIRST = ("out", "model", "tasks", "samples", "max_new_tokens", "environment", "temperature", "policy", "seed")

VERBS = {
    "quickstart": Verb(
        "sample, weigh, fine-tune, measure and report on the built-in policy, in minutes", "drift.pipeline:quickstart",
        example="drift quickstart",
        first=_RECIPE_FIRST, record=_RECIPE, shows="print_summary"),
    "run": Verb(
        "run a whole recipe; finished stages are not run again", "drift.pipeline:run", ("recipe",),
        example="drift run quickstart --model ./my-model --sampling.max_new_tokens 64 --out runs/mine --dry_run",
        first=_RECIPE_FIRST, record=_RECIPE, shows="print_summary"),
    "compare": Verb(
        "run many methods and seeds on one recipe, and say which is better", "drift.comparison.run:compare",
        ("recipe",),
        example="drift compare quickstart --methods drift,sft,rft --seeds 1,2,3 --against sft",
        first=("methods", "seeds", "against", "jobs", *_RECIPE_FIRST), record=_RECIPE, shows="print_comparison"),
    "rollout": Verb(
        "hold K conversations for each task of an environment", "drift.api:rollout", ("environment",),
        example="drift rollout guess --environment.width 20 --tasks 400 --max_new_tokens 16 --out run/rollouts",
        first=_SAMPLE_FIRST),
    "import": Verb(
        "turn logged conversations with rewards into trajectories", "drift.api:read_logs", ("file",),
        example="drift import log.jsonl --columns.reward rating --model ./my-model --out run/logged",
        shows="print_import"),
    "weigh": Verb(
        "weigh conversations by their return", "drift.api:weigh", ("data",),
        example="drift weigh run/rollouts --scheme drift --beta 0.1 --steps '[drop_unsolved]' --out run/weights",
        first=("scheme", "beta", "steps", "outcome", "turns", "out"), record="drift.weights.config:WeightConfig"),
    "preview": Verb(
        "show what will be trained, what it weighs, and what is left out and why", "drift.api:preview",
        ("data", "weights"), example="drift preview run/rollouts run/weights --out preview.html",
        shows="print_preview"),
    "train": Verb(
        "fine-tune a model on weighted conversations", "drift.api:train", ("data", "weights"),
        example="drift train run/rollouts run/weights --max_steps 60 --learning_rate 1e-4 --out run/model",
        first=("out", "model", "max_steps", "epochs", "batch_size", "learning_rate", "plan", "tokens_per_batch",
               "dtype", "lora", "num_processes", "seed")),
    "train-preference": Verb(
        "train with DPO or KTO on the same conversations, through TRL", "drift.api:train_preference", ("data",),
        example="drift train-preference run/rollouts --learning_rate 1e-5 --out run/dpo",
        first=("out", "model")),
    "train-online": Verb(
        "train with GRPO on conversations held meanwhile, through TRL", "drift.api:train_online", ("environment",),
        example="drift train-online arithmetic --rounds 60 --prompts 16 --max_new_tokens 16 --out run/grpo",
        first=("out", "model", "rounds", "prompts", "samples")),
    "export": Verb(
        "write conversations as pairs, labelled or weighted rows for other trainers", "drift.api:export", ("data",),
        example="drift export run/rollouts --format kto --out run/kto.jsonl",
        shows="print_export"),
    "evaluate": Verb(
        "measure models on held-out tasks", "drift.api:evaluate", ("environment",),
        example="drift evaluate arithmetic --models.base default --models.tuned run/model --seen run/rollouts",
        first=("models", "out", "seen", "tasks", "samples", "max_new_tokens", "environment", "seed"),
        shows="print_summary"),
    "report": Verb(
        "write the report page of a run", "drift.api:report", ("run",),
        example="drift report run"),
    "check": Verb(
        "put an environment through its protocol, or look for damage in a run directory", "drift.audit:check",
        ("what",),
        example="drift check arithmetic",
        shows="print_findings"),
    "verify": Verb(
        "show your own replies beside what is read from them", "drift.environments.replies:verify", ("file",),
        example="drift verify replies.jsonl --verifier math"),
}
# fmt: on


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code: 0 done, 1 failed, 2 wrong usage, 130 interrupted."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    try:
        if given[:1] == ["help"]:
            given = [*given[1:2], "--help"]
        if not given or given[0].startswith("-"):
            return _top_level(given)
        name, *rest = given
        if name not in VERBS:
            raise unknown_name("command", name, VERBS)
        return _run(name, VERBS[name], rest)
    except DriftError as error:
        print(f"drift: {scrubbed(str(error))}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("drift: stopped. Run the same command again to go on.", file=sys.stderr)
        return 130
    except BrokenPipeError:
        # The reader of a pipe left; Python would complain again while closing stdout.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


def _run(name: str, verb: Verb, arguments: Sequence[str]) -> int:
    function = _load(verb.function)
    parser = parser_of(name, arguments)
    found = _as_dict(parse(parser, arguments))
    positional = [found.pop(each.upper()) for each in verb.positional]
    if "environment" in verb.positional:
        at = verb.positional.index("environment")
        settings = found.pop("environment", {})
        positional[at] = {"name": positional[at], **settings} if settings else positional[at]
    # Dotted keys of a recipe are the function's keywords; of other verbs they are the parts of one argument.
    keywords = _load("drift.recipe:flatten")(found) if verb.record == _RECIPE else _nested_policy(found)
    for key, each in inspect.signature(function).parameters.items():
        if each.kind is each.KEYWORD_ONLY and each.default is each.empty and key not in keywords:
            raise ConfigError(f"drift {name} needs --{key}. For example: {verb.example}")
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    result = function(*positional, **keywords)
    if result is None or os.environ.get("RANK", "0") != "0":
        return 0
    if verb.shows:
        return int(_load(f"drift.reporting.console:{verb.shows}")(result) or 0)
    for line in [str(result)] if not hasattr(result, "summary") else [f"{result}:", *result.summary()]:
        print(line)
    return 0


def parser_of(name: str, arguments: Sequence[str] = ()) -> ArgumentParser:
    """The parser of a verb; ``arguments`` may name a scheme, whose settings are options too."""
    verb = VERBS[name]
    function = _load(verb.function)
    words = descriptions_of(function)
    summary = (inspect.getdoc(function) or "").split("\n\n")[0]
    parser = ArgumentParser(
        prog=f"drift {name}",
        usage=" ".join([f"drift {name}", *(each.upper() for each in verb.positional), "[options]"]),
        description=f"{summary}\n\nExample: {verb.example}",
        exit_on_error=False,
        allow_abbrev=False,
        formatter_class=help_formatter(),
    )
    for argument in verb.positional:
        parser.add_argument(argument.upper(), type=str, help=_positional_help(name, argument, words))
    options = {found.name: found for found in _options(verb, function, arguments)}
    for key in verb.first:
        for each in [each for each in options if each == key or each.startswith(f"{key}.")]:
            _add(parser, options.pop(each), brief=verb.record == _RECIPE)
    groups: dict[str, Any] = {"": parser}
    for rest in options.values():
        title = "further options" if verb.first else ""
        if verb.record == _RECIPE and "." in rest.name:
            title = f"further keys of {rest.name.partition('.')[0]}"
        if title not in groups:
            groups[title] = parser.add_argument_group(title)
        _add(groups[title], rest)
    return parser


def _options(verb: Verb, function: Callable[..., Any], arguments: Sequence[str]) -> Iterator[Option]:
    words = descriptions_of(function)
    hints = typing.get_type_hints(inspect.unwrap(function))
    for parameter in inspect.signature(function).parameters.values():
        if parameter.name in verb.positional and parameter.name != "environment":
            continue
        if parameter.kind is parameter.VAR_KEYWORD or parameter.name == "config":
            continue
        hint = parameter.annotation if not isinstance(parameter.annotation, str) else hints[parameter.name]
        inner = next((each for each in (hint, *typing.get_args(hint)) if is_dataclass(each)), None)
        if inner is not None:
            yield from options_of_record(inner, f"{parameter.name}.")
        elif parameter.name == "environment":
            text = "settings of the environment: --environment.KEY VALUE"
            yield Option(name="environment", type=dict[str, Any], help=text)
        else:
            yield option(parameter.name, hint, parameter.default, words.get(parameter.name, ""))
    if verb.record:
        yield from options_of_record(_load(verb.record))
    scheme = _peek(arguments, "--scheme") if verb.record.endswith(":WeightConfig") else ""
    if scheme and "{" not in scheme:
        from drift.registry import settings_of
        from drift.weights.schemes import find_scheme

        own = find_scheme(scheme).function
        for key, default in settings_of(own).items():
            if key != "beta":
                yield option(key, Any, default, descriptions_of(own).get(key) or f"setting of the scheme {scheme}")


def _add(group: Any, option: Option, *, brief: bool = False) -> None:
    """Add an option; its stage's own verb tells in full what ``brief`` leaves out: all but the first sentence."""
    flag = option.type is bool
    more: dict[str, Any] = {"nargs": "?", "const": True} if flag else {"metavar": metavar(option.type)}
    words = re.sub(r"\.(?: .*?)??(?=$| \(default: )", ".", option.help, count=1) if brief else option.help
    group.add_argument(f"--{option.name}", type=option.type, default=SUPPRESS, help=words, **more)


def _positional_help(verb: str, name: str, words: Mapping[str, str]) -> str:
    from drift.recipe import built_in_comparisons, built_in_recipes

    text = words.get(name, "").replace("%", "%%").rstrip(".")
    if name != "recipe":
        return text
    known = [*built_in_recipes(), *(built_in_comparisons() if verb == "compare" else [])]
    return f"{text}; built in: {', '.join(sorted(known))}."


def _top_level(given: Sequence[str]) -> int:
    if given and given[0] == "--version":
        print(f"drift {drift.__version__}")
        return 0
    if given and given[0] not in ("-h", "--help"):
        raise unknown_name("option", given[0], ["--help", "--version"], where="drift")
    width = max(map(len, VERBS)) + 2
    print(f"usage: drift VERB [options]\n\n{inspect.getdoc(drift)}\n\nverbs:")
    print("\n".join(f"  {name:{width}}{verb.summary}" for name, verb in VERBS.items()))
    print("\ndrift VERB --help tells a verb's options, drift --version the version.")
    return 0


def parse(parser: ArgumentParser, arguments: Sequence[str]) -> Namespace:
    """Parse a verb's arguments; ``-`` and ``_`` mean the same in options, unknown ones get the nearest known one."""
    given = list(_switched_on(parser, [as_declared(parser, argument) for argument in _named(arguments)]))
    try:
        return parser.parse_args(given)
    except ArgumentError as error:
        message = " ".join(str(error).split()).rstrip(".")
        message = message.replace("unrecognized arguments:", "too many arguments, or options without --:")
        wrong = re.match(r'Parser key "(\S+)"', message)
        if wrong:
            key, got = wrong.group(1), re.search(r"(?:Given value|Got value): (.*)$", message)
            kind = _types_of(parser).get(key)
            message = f"--{key}: got {got.group(1) if got else 'a value'}, expected {in_words(kind, key)}"
        raise ConfigError(f"{message}. See {parser.prog} --help.") from error


def _types_of(parser: ArgumentParser) -> dict[str, Any]:
    return {action.dest: getattr(action, "_typehint", action.type) for action in parser._actions}


def _named(arguments: Sequence[str]) -> Iterator[str]:
    """``arguments`` with ``--environment NAME`` as ``--environment.name NAME``: settings may stand beside it.

    So does ``--data FILE`` for ``--data.file FILE``.
    """
    short = {"--environment": "--environment.name", "--data": "--data.file"}
    for argument, value in zip(arguments, [*arguments[1:], ""], strict=False):
        name, equals, own = argument.partition("=")
        plain = not (own if equals else value).lstrip().startswith("{")
        yield f"{short[name]}{equals}{own}" if name in short and plain else argument


def _switched_on(parser: ArgumentParser, given: Sequence[str]) -> Iterator[str]:
    """``given`` with ``--flag`` as ``--flag=true``, so that it doesn't take what follows for its value."""
    flags = {name for action in parser._actions if action.nargs == "?" for name in action.option_strings}
    for word, value in zip(given, [*given[1:], ""], strict=False):
        yield f"{word}=true" if word in flags and value.lower() not in ("true", "false") else word


def _nested_policy(values: dict[str, Any]) -> dict[str, Any]:
    """``values`` with settings of one model alone, as {tuned.engine: hf}, under its name."""
    from drift.recipe import nested

    return {**values, "policy": nested(values["policy"])} if values.get("policy") else values


def _as_dict(found: Namespace) -> dict[str, Any]:
    return {key: _as_dict(value) if isinstance(value, Namespace) else value for key, value in vars(found).items()}


def _peek(arguments: Sequence[str], option: str) -> str:
    """The value of an option, before all of them are parsed."""
    for at, argument in enumerate(arguments):
        name, equals, value = argument.partition("=")
        if name == option:
            return value if equals else next(iter(arguments[at + 1 :]), "")
    return ""


def _load(path: str) -> Any:
    module, _, name = path.partition(":")
    return getattr(import_module(module), name)


def entry() -> None:
    """The console script."""
    if "LOCAL_RANK" not in os.environ:
        sys.exit(main())
    try:
        code = main()
    except SystemExit as stop:
        code = int(stop.code or 0)
    leave(code)
