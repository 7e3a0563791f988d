"""A whole recipe as one call: sample, weigh, fine-tune (in one round or several), measure, report."""

from __future__ import annotations

import json
import os
import re
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from drift.api import read_logs, train
from drift.artifacts import LIKELIHOOD, MODEL, Run
from drift.endings import stage
from drift.errors import require
from drift.evaluation.run import ESTIMATES, evaluate_policies
from drift.manifest import MANIFEST, read_manifest
from drift.own_process import call_apart
from drift.policies.base import derive_seed
from drift.preflight import check_recipe
from drift.recipe import Recipe, make_recipe, override, recipe_values
from drift.record import write_record
from drift.rollouts.run import roll_out
from drift.run_directory import say, take
from drift.serving import needs_own_process, served, unseen_weights, who_samples
from drift.terminal import tell
from drift.training.config import TrainingConfig
from drift.weights.stage import weigh_dataset


def run(
    recipe: Any = "quickstart",
    *,
    out: str | os.PathLike[str] | None = None,
    dry_run: bool = False,
    replace: bool = False,
    **keys: Any,
) -> Run | None:
    """Run a whole recipe: sample, weigh, fine-tune, measure, report; finished stages are not run again.

    Args:
        recipe: a built-in recipe, a YAML file, a mapping, or a Recipe.
        out: directory of the run; runs/NAME unless given.
        dry_run: print the recipe, check every stage, and stop.
        replace: where out was begun with another recipe, make again what that changes, and keep the other stages.
        keys: any key of a recipe, dotted ({"weights.beta": 0.3}) or by its last part where no other key has it (beta).

    Raises:
        ConfigError: a key or value that can't be, with the nearest known one; or out was begun with another recipe.
    """
    import yaml

    named = isinstance(recipe, str | os.PathLike)
    values = override(recipe_values(recipe), keys, "run", ("recipe", "out", "dry_run", "replace"))
    resolved = make_recipe(values, str(recipe) if named else "given")
    place = Path(out or f"runs/{Path(recipe).stem if named else 'run'}")
    if dry_run:
        tell(yaml.safe_dump(resolved.to_dict(), sort_keys=False, allow_unicode=True), end="")
        say(take(resolved.to_dict(), place, replace=replace, dry_run=True))
        say(check_recipe(resolved, place))
        return None
    run_recipe(resolved, place, replace=replace)
    return Run(place)


def quickstart(
    *, out: str | os.PathLike[str] | None = None, dry_run: bool = False, replace: bool = False, **keys: Any
) -> Run | None:
    """Sample, weigh, fine-tune, measure and report on the built-in policy, in minutes.

    Args:
        out: directory of the run; runs/quickstart unless given.
        dry_run: print the recipe, check every stage, and stop.
        replace: where out was begun with another recipe, make again what that changes, and keep the other stages.
        keys: any key of a recipe.
    """
    return run("quickstart", out=out, dry_run=dry_run, replace=replace, **keys)


def run_recipe(recipe: Recipe, out: Path, *, replace: bool = False) -> None:
    """Run every stage of ``recipe`` into ``out``; stages that are finished are not run again.

    Writes ``recipe.yaml`` (resolved), ``rollouts/``, ``weights/``, ``model/``, ``evaluation/`` and ``report.html``, and
    beside the model its card.
    Without an environment there is no evaluation, but of a log ``likelihood/``, if its weights hold prompts out.
    Where there are several rounds, ``weights`` and ``model`` of each, and its ``rollouts`` from the second on, lie in
    ``round-1/``, ``round-2/``, …

    Args:
        recipe: what to run.
        out: where; what is there of an earlier recipe stays where this one does not change it.
        replace: make again what is there and this recipe changes.

    Raises:
        ConfigError: ``out`` holds results that this recipe changes, or torchrun started this process as one of several.
    """
    from drift.publishing.card import write_card
    from drift.reporting.page import write_report

    one_process()
    values = recipe.to_dict()
    # Refused at once, before what takes seconds; taken when nothing else is wrong.
    take(values, out, replace=replace, dry_run=True)
    check_recipe(recipe, out)
    say(take(values, out, replace=replace))
    with stage("rollouts", out / "rollouts"):
        sample(recipe, out / "rollouts")
    model = tune(recipe, out / "rollouts", out)
    setup, models = served(recipe, model)
    if recipe.data is not None:
        _measure_log(recipe, model, out)
    if recipe.environment:
        with stage("evaluation", out / "evaluation"):
            evaluate_policies(
                setup,
                models,
                recipe.evaluation,
                recipe.sampling,
                out / "evaluation",
                seed=recipe.seed,
                seen=out / "rollouts",
                concurrency=recipe.concurrency,
                cluster=recipe.cluster,
            )
            _track(recipe, model, out / "evaluation")
    with stage("report", out):
        write_card(model)
        write_report(out, out / "report.html")
        write_record(out)


def _track(recipe: Recipe, model: Path, evaluation: Path) -> None:
    """Give the trackers of the training, if it has any, what was measured: success, and where it is paid, reward."""
    if recipe.training.arguments.get("report_to", "none") == "none":
        return
    from drift.training.arguments import training_arguments
    from drift.training.trackers import log_figures

    rows = json.loads((evaluation / ESTIMATES).read_text())
    kept = [row for row in rows if row["value"] is not None and re.search(r"/(?:multi@\d+|reward)$", row["metric"])]
    names = {f"{row['policy'].replace(' ', '')}/{row['metric']}": row["value"] for row in kept}
    steps = int(read_manifest(model, MODEL)["steps"])
    log_figures(training_arguments(recipe.training, model, steps, recipe.seed, recipe.device), steps, names)


def _measure_log(recipe: Recipe, model: Path, out: Path) -> None:
    """How likely base and tuned model find the replies to the prompts of a log that the step ``hold_out`` left out."""
    from drift.evaluation.likelihood import NothingHeldOut, evaluate_log

    asked = any(step.name == "hold_out" for step in recipe.weights.chain.steps)
    if not asked or (out / LIKELIHOOD / MANIFEST).is_file():
        return
    models = {"base": recipe.model, "tuned": os.fspath(model)}
    more: dict[str, Any] = {"config": recipe.evaluation, "sampling": recipe.sampling, "device": recipe.device}
    more["dtype"] = str(recipe.policy.get("dtype", "auto"))
    with suppress(NothingHeldOut):
        evaluate_log(out / "rollouts", model.parent / "weights", models, out / LIKELIHOOD, **more)


def one_process() -> None:
    """Raise ``ConfigError`` where torchrun started this process as one of several."""
    require(
        os.environ.get("WORLD_SIZE", "1") == "1" or "LOCAL_RANK" not in os.environ,
        "WORLD_SIZE",
        os.environ.get("WORLD_SIZE"),
        "a single process for a whole recipe",
        "Start it without torchrun and give training.num_processes: it starts them for the training.",
    )


def sample(recipe: Recipe, out: Path, *, model: Path | None = None, round: int = 1, source: Any = None) -> None:
    """Sample the conversations of one round of ``recipe`` into ``out``, or take them from its log.

    Args:
        recipe: what to sample.
        out: directory of the trajectories.
        model: the tuned model whose replies they are; the recipe's own unless given.
        round: from 1. Every round has the same tasks; samples are seeded apart.
        source: see ``roll_out``.
    """
    if recipe.data is not None:
        read_logs(**recipe.data, model=recipe.model, out=out)
        return
    roll_out(
        who_samples(recipe, model),
        recipe.rollouts,
        recipe.sampling,
        out,
        seed=recipe.seed,
        sample_seed=derive_seed(recipe.seed, "round", round) if round > 1 else None,
        concurrency=recipe.concurrency,
        cluster=recipe.cluster,
        source=source,
    )


def tune(recipe: Recipe, data: Path, out: Path) -> Path:
    """Weigh ``data`` and fine-tune on it, in as many rounds as ``recipe`` says; returns the model folder.

    Round r has ``weights`` and ``model``, and from the second on ``rollouts``, in ``stage_folder(out, r, rounds)``.

    Args:
        recipe: how to weigh and train.
        data: conversations of the recipe's own model, for the first round.
        out: where to.
    """
    from drift.training.launch import needs_launch

    model: Path | None = None
    for number, config in enumerate(split_steps(recipe.training, recipe.rounds), 1):
        folder = stage_folder(out, number, recipe.rounds)
        if number > 1:
            data = folder / "rollouts"
            with stage("rollouts", data):
                sample(recipe, data, model=model, round=number)
        with stage("weights", folder / "weights"):
            weigh_dataset(data, recipe.weights, folder / "weights")
        more: dict[str, Any] = {
            "config": config,
            "out": folder / "model",
            "model": os.fspath(model or recipe.model),
            "seed": recipe.seed,
            "device": recipe.device,
            "any_policy": unseen_weights(recipe),
        }
        with stage("training", folder / "model"):
            if needs_own_process(recipe) and not needs_launch(config):
                call_apart("drift.training.run:train_model", data=data, weights=folder / "weights", **more)
            else:
                train(data, folder / "weights", **more)
        model = folder / "model"
    assert model is not None
    return model


def stage_folder(out: Path, number: int, rounds: int) -> Path:
    """Where round ``number`` of ``rounds`` lies: ``out`` itself where there is one round only."""
    return out if rounds == 1 else out / f"round-{number}"


def split_steps(config: TrainingConfig, rounds: int) -> list[TrainingConfig]:
    """The training of each round: the steps (or epochs) shared out, what is left over going to the first rounds."""
    if config.epochs:
        return [replace(config, epochs=config.epochs / rounds)] * rounds
    each, over = divmod(config.max_steps, rounds)
    return [replace(config, max_steps=each + (number < over)) for number in range(rounds)]
