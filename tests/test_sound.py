"""Runs in which nothing is wrong: moved, copied, linked, resumed, made by every way, among files of one's own."""

import os
import random
import shutil
import subprocess
import tarfile
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from tests.test_audit import RECIPE
from tests.test_logs_recipe import log

import drift
from drift.audit import check
from drift.comparison import Comparison, run_comparison
from drift.comparison.methods import find_methods
from drift.pipeline import run_recipe
from drift.recipe import change, make_recipe

# What is done with a copy of a finished run, beside which ``place`` is empty: what to look at then.
Situation = Callable[[Path, Path], Path]
SOUND: dict[str, Situation] = {}
# These are looked at by ``make test``, all of them by ``make slow``.
QUICK = ("moved", "copied without times", "linked", "stages linked", "a shard was gone and is made again", "own files")


def sound(name: str) -> Callable[[Situation], Situation]:
    return lambda situation: SOUND.setdefault(name, situation)


def below(run: Path) -> list[Path]:
    return [run, *sorted(path for path in run.rglob("*") if not path.is_symlink())]


def moved_to(name: str) -> Situation:
    return lambda run, place: Path(shutil.move(run, place / name))


def copied_by(copy: Callable[[str, str], object]) -> Situation:
    return lambda run, place: Path(shutil.copytree(run, place / "copied", copy_function=copy))


def called(*command: str) -> Situation:
    def call(run: Path, place: Path) -> Path:
        subprocess.run([*command, str(run), str(place / "copied")], check=True)
        return place / "copied"

    return call


def only(*names: str) -> Situation:
    """A part of the run, copied elsewhere without what tells of the whole."""

    def part(run: Path, place: Path) -> Path:
        for name in names:
            shutil.copytree(run / name, place / "part" / name)
        return place / "part"

    return part


def with_mode(files: int, folders: int) -> Situation:
    def change_modes(run: Path, place: Path) -> Path:
        for path in reversed(below(run)):
            path.chmod(folders if path.is_dir() else files)
        return run

    return change_modes


def at_time(seconds: Callable[[random.Random], float]) -> Situation:
    def touch(run: Path, place: Path) -> Path:
        rng = random.Random(1)
        for path in below(run):
            os.utime(path, (seconds(rng), seconds(rng)))
        return run

    return touch


def removed(*patterns: str) -> Situation:
    """Without what a user may take away to save room."""

    def remove(run: Path, place: Path) -> Path:
        for path in (path for pattern in patterns for path in sorted(run.glob(pattern))):
            shutil.rmtree(path) if path.is_dir() else path.unlink()
        return run

    return remove


def run_again_after(*patterns: str) -> Situation:
    def again(run: Path, place: Path) -> Path:
        removed(*patterns)(run, place)
        run_recipe(RECIPE, run)
        return run

    return again


def run_with(**keys: object) -> Situation:
    """Another run, in a place of its own."""

    def other(run: Path, place: Path) -> Path:
        run_recipe(change(RECIPE, {name.replace("__", "."): value for name, value in keys.items()}), place / "other")
        return place / "other"

    return other


def own(*names: str, text: str = "mine") -> Situation:
    def write(run: Path, place: Path) -> Path:
        for name in names:
            (run / name).parent.mkdir(parents=True, exist_ok=True)
            (run / name).write_text(text)
        return run

    return write


SOUND |= {
    "moved": moved_to("moved"),
    "renamed with spaces and letters": moved_to("ein Lauf, größer #2 [neu]"),
    "renamed as a stage is": moved_to("rollouts"),
    "renamed as a checkpoint is": moved_to("checkpoint-7"),
    "hidden": moved_to(".run"),
    "copied without times": copied_by(shutil.copyfile),
    "copied with times": copied_by(shutil.copy2),
    "hard-linked": copied_by(os.link),
    "each file linked": copied_by(os.symlink),
    "cp -r": called("cp", "-r"),
    "cp -a": called("cp", "-a"),
    "cp -rL": called("cp", "-rL"),
    "rollouts alone": only("rollouts"),
    "weights alone": only("weights"),
    "model alone": only("model"),
    "evaluation alone": only("evaluation"),
    "model and evaluation alone": only("model", "evaluation"),
    "stages copied one by one": only("rollouts", "weights", "model", "evaluation"),
    "nobody may write": with_mode(0o444, 0o555),
    "only its owner may read": with_mode(0o600, 0o700),
    "everybody may do everything": with_mode(0o777, 0o777),
    "old": at_time(lambda rng: 0),
    "of the future": at_time(lambda rng: 4e9),
    "times in no order": at_time(lambda rng: rng.uniform(1e9, 2e9)),
    "without checkpoints": removed("model/checkpoints"),
    "without locks": removed("**/.lock"),
    "without page": removed("report.html"),
    "run again": run_again_after(),
    "a shard was gone and is made again": run_again_after("rollouts/shards/*"),
    "killed while it trained": run_again_after("model/manifest.json", "model/*.safetensors", "run.json", "*.html"),
    "killed while it was evaluated": run_again_after("evaluation/manifest.json", "evaluation/*/*/manifest.json"),
    "killed before the page": run_again_after("run.json", "report.html"),
    "LoRA": run_with(training__lora={"r": 2}),
    "two rounds": run_with(rounds=2),
    "drawn greedily too": run_with(evaluation__samples=1),
    "trained by batches that weigh alike": run_with(training__plan="balanced", training__hold_out=0.3),
    "own files": own("notes.md", "model/.draft.tmp", "rollouts/plot.png", "rollouts/.a.tmp", "rollouts/shards/.x.tmp"),
    "own folders named like stages": own("notes/rollouts/a.txt", "notes/model/b.txt", "weights/weights/c.txt"),
    "files of a Mac": own(
        ".DS_Store", "model/._model.safetensors", "rollouts/._manifest.json", "rollouts/shards/.DS_Store"
    ),
    "shards beside those of a Mac": own("rollouts/shards/._000000-0123456789abcdef.parquet"),
    "a manifest of something else": own("app/manifest.json", text='{"name": "app", "icons": []}'),
    "a record of something else": own("app/run.json", text='{"name": "app"}'),
    "a recipe of something else": own("cake/recipe.yaml", text="eggs: 3\n"),
    "a recipe that drift could not read": own("cake/recipe.yaml", text="- eggs\n- {flour"),
    "kept by git": own(".git/HEAD", ".gitattributes", "evaluation/.gitignore", "model/.ipynb_checkpoints/a.json"),
}


@sound("linked")
def _(run: Path, place: Path) -> Path:
    (place / "linked").symlink_to(run)
    return place / "linked"


@sound("below a linked folder, by a path that goes up and down")
def _(run: Path, place: Path) -> Path:
    (place / "linked").symlink_to(run.parent)
    return place / "linked" / run.name / "model" / ".." / ".." / run.name


@sound("stages linked")
def _(run: Path, place: Path) -> Path:
    for name in ("rollouts", "model"):
        shutil.move(run / name, place / name)
        (run / name).symlink_to(place / name)
    return run


@sound("a stage linked by a relative path")
def _(run: Path, place: Path) -> Path:
    shutil.move(run / "weights", run.parent / "the weights")
    (run / "weights").symlink_to("../the weights")
    return run


@sound("links that lead nowhere, or round")
def _(run: Path, place: Path) -> Path:
    (run / "gone").symlink_to(place / "gone")
    (run / "model" / "round").symlink_to(run)
    os.mkfifo(run / "pipe")
    return run


@sound("packed with tar")
def _(run: Path, place: Path) -> Path:
    with tarfile.open(place / "run.tar.gz", "w:gz") as file:
        file.add(run, "run")
    with tarfile.open(place / "run.tar.gz") as file:
        file.extractall(place, filter="data")
    return place / "run"


@sound("packed with zip")
def _(run: Path, place: Path) -> Path:
    with zipfile.ZipFile(place / "run.zip", "w") as file:
        for path in below(run):
            file.write(path, path.relative_to(run.parent))
    with zipfile.ZipFile(place / "run.zip") as file:
        file.extractall(place)
    return place / run.name


@sound("two runs that share rollouts")
def _(run: Path, place: Path) -> Path:
    other = place / "runs" / "other"
    other.mkdir(parents=True)
    shutil.move(run, place / "runs" / "one")
    (other / "rollouts").symlink_to("../one/rollouts")
    run_recipe(change(RECIPE, {"weights.beta": 0.3}), other)
    return place / "runs"


@sound("two copies side by side")
def _(run: Path, place: Path) -> Path:
    shutil.copytree(run, run.with_name("copy"))
    return run.parent


@sound("two runs, of one of which only the model is kept")
def _(run: Path, place: Path) -> Path:
    run_recipe(change(RECIPE, {"seed": 2}), place / "other")
    return only("model", "evaluation")(place / "other", run.parent).parent


@sound("weights made again")
def _(run: Path, place: Path) -> Path:
    drift.weigh(run / "rollouts", config=RECIPE.weights, out=run / "weights")
    return run


@sound("other weights and a model of them beside")
def _(run: Path, place: Path) -> Path:
    drift.weigh(run / "rollouts", "sft", out=run / "weights-sft")
    drift.train(run / "rollouts", run / "weights-sft", config=RECIPE.training, out=run / "model-sft")
    return run


@sound("other rollouts beside")
def _(run: Path, place: Path) -> Path:
    drift.rollout("guess", config=RECIPE.rollouts, sampling=RECIPE.sampling, seed=9, out=run / "more-rollouts")
    return run


@sound("another evaluation beside, of three models")
def _(run: Path, place: Path) -> Path:
    models = {"base": "default", "tuned": run / "model", "again": "default"}
    more = {"config": RECIPE.evaluation, "sampling": RECIPE.sampling}
    drift.evaluate(RECIPE.environment, models, seen=run / "rollouts", out=run / "evaluation-3", **more)
    return run


@sound("the evaluation has one more model, and the recipe is run again")
def _(run: Path, place: Path) -> Path:
    models = {"base": "default", "tuned": run / "model", "again": "default"}
    more = {"config": RECIPE.evaluation, "sampling": RECIPE.sampling}
    drift.evaluate(RECIPE.environment, models, seen=run / "rollouts", out=run / "evaluation", **more)
    run_recipe(RECIPE, run)
    return run


@sound("the page made again")
def _(run: Path, place: Path) -> Path:
    drift.report(run)
    drift.report(run, out=run / "page.html")
    return run


@sound("looked at, exported and previewed in its own folder")
def _(run: Path, place: Path) -> Path:
    drift.view(run, export=run / "view.html")
    drift.preview(run / "rollouts", run / "weights", out=run / "preview.html")
    drift.export(run / "rollouts", format="kto", out=run / "rows" / "kto.jsonl")
    return run


@sound("corrected with --replace")
def _(run: Path, place: Path) -> Path:
    run_recipe(change(RECIPE, {"weights.beta": 0.3}), run, replace=True)
    return run


@sound("corrected with --replace, and back")
def _(run: Path, place: Path) -> Path:
    run_recipe(change(RECIPE, {"training.max_steps": 3}), run, replace=True)
    run_recipe(RECIPE, run, replace=True)
    return run


@sound("measured on more tasks with --replace")
def _(run: Path, place: Path) -> Path:
    run_recipe(change(RECIPE, {"evaluation.tasks": 6}), run, replace=True)
    return run


@sound("made stage by stage")
def _(run: Path, place: Path) -> Path:
    data, more = place / "by-hand" / "data", {"sampling": RECIPE.sampling}
    drift.rollout("arithmetic", config=RECIPE.rollouts, out=data, **more)
    drift.weigh(data, config=RECIPE.weights)
    drift.train(data, data.parent / "weights", config=RECIPE.training)
    drift.evaluate("arithmetic", {"tuned": data.parent / "model"}, config=RECIPE.evaluation, seen=data, **more)
    drift.report(data.parent)
    return data.parent


def of_log(run: Path, place: Path) -> Path:
    weights = {"scheme": "swift", "steps": [{"hold_out": 0.3}]}
    training = {"max_steps": 2, "batch_size": 8}
    values = {"data": {"file": str(log(place / "log.jsonl")), "columns": {"reward": "rating"}}}
    run_recipe(make_recipe({**values, "weights": weights, "training": training}, "log"), place / "of-log")
    return place / "of-log"


def compared(*calls: Sequence[str]) -> Situation:
    def compare(run: Path, place: Path) -> Path:
        recipe = replace(RECIPE, evaluation=replace(RECIPE.evaluation, tasks=8))
        for names in calls:
            comparison = Comparison(recipe=recipe, methods=find_methods(names, {}), seeds=(1,))
            run_comparison(comparison, place / "compared")
        return place / "compared"

    return compare


SOUND |= {
    "of a log": of_log,
    "compared": compared(("sft", "rft")),
    "compared with one method more": compared(("sft",), ("sft", "drift-refresh")),
    "a comparison that was moved": lambda run, place: moved_to("elsewhere")(compared(("sft",))(run, place), place),
}


@pytest.mark.parametrize("name", [pytest.param(name, marks=[pytest.mark.slow] * (name not in QUICK)) for name in SOUND])
def test_a_sound_run_is_in_order(finished: Path, tmp_path: Path, name: str) -> None:
    run = Path(shutil.copytree(finished, tmp_path / "home" / "run"))
    place = tmp_path / "place"
    place.mkdir()
    looked_at = SOUND[name](run, place)
    before = set(tmp_path.rglob("*"))
    found = check(looked_at, repair=True)
    assert found.failed == 0, [line for line in found.lines if not line.startswith("ok")]
    assert {path for path in before if not os.path.lexists(path)} == set()


def test_there_are_fifty_and_more_of_them() -> None:
    assert len(SOUND) >= 50
