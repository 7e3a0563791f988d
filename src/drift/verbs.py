"""The verbs of the command line: which function each is made from, and what its help tells first."""

from __future__ import annotations

from dataclasses import dataclass


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
RECIPE = "drift.recipe:Recipe"
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
        first=_RECIPE_FIRST, record=RECIPE, shows="print_summary"),
    "run": Verb(
        "run a whole recipe; finished stages are not run again", "drift.pipeline:run", ("recipe",),
        example="drift run quickstart --model ./my-model --sampling.max_new_tokens 64 --out runs/mine --dry_run",
        first=_RECIPE_FIRST, record=RECIPE, shows="print_summary"),
    "compare": Verb(
        "run many methods and seeds on one recipe, and say which is better", "drift.comparison.run:compare",
        ("recipe",),
        example="drift compare quickstart --methods drift,sft,rft --seeds 1,2,3 --against sft",
        first=("methods", "seeds", "against", "jobs", *_RECIPE_FIRST), record=RECIPE, shows="print_comparison"),
    "rollout": Verb(
        "hold K conversations for each task of an environment", "drift.api:rollout", ("environment",),
        example="drift rollout guess --environment.width 20 --tasks 400 --max_new_tokens 16 --out run/rollouts",
        first=_SAMPLE_FIRST),
    "import": Verb(
        "turn logged conversations with rewards into trajectories", "drift.api:read_logs", ("file",),
        example="drift import log.jsonl --columns.reward rating --model ./my-model --out run/logged",
        shows="print_import"),
    "rank": Verb(
        "let a judge rank the conversations of each prompt", "drift.api:rank", ("data",),
        example="drift rank run/rollouts --judge.policy openai:NAME --out run/ranking"),
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
    "view": Verb(
        "look at stages and conversations in a browser", "drift.api:view", ("run",), example="drift view run"),
    "check": Verb(
        "put an environment through its protocol, or look for damage in a run directory", "drift.audit:check",
        ("what",),
        example="drift check arithmetic",
        shows="print_findings"),
    "verify": Verb(
        "show your own replies beside what is read from them", "drift.environments.replies:verify", ("file",),
        example="drift verify replies.jsonl --verifier math"),
    "new": Verb(
        "write a package with an environment or a weighting, or a recipe, to start from", "drift.scaffold:new",
        ("kind", "name"), example="drift new environment word-length"),
    "push": Verb(
        "upload a model to the hub, with a card written from its manifests", "drift.publishing.hub:push",
        ("model", "repository"), example="drift push run/model OWNER/NAME --dry_run"),
    "schema": Verb(
        "print the JSON schema of recipes, for editors", "drift.recipe_schema:schema", example="drift schema"),
    "completion": Verb(
        "print a script by which bash, zsh or fish completes commands", "drift.completion:completion", ("shell",),
        example="drift completion bash"),
}
# fmt: on
