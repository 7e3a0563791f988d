"""The stages as Python calls, of which the command line is made. Each returns a handle on what it wrote."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from drift.artifacts import EVALUATION, LIKELIHOOD, MODEL, REWARDS, TRAJECTORIES, WEIGHTS, Artifact, Page
from drift.baselines.config import OnlineConfig, PreferenceConfig
from drift.errors import ConfigError, require, unknown_name
from drift.evaluation.config import EvaluationConfig
from drift.exports.config import ExportConfig
from drift.keywords import by_fields, make_record
from drift.manifest import MANIFEST
from drift.policies import kind_of, model_path
from drift.policies.base import Sampling
from drift.registry import name_of, settings_of
from drift.reporting.preview import Preview, make_preview
from drift.rollouts.config import CONCURRENCY, ClusterConfig, RolloutConfig
from drift.rollouts.setup import Setup
from drift.training.config import TrainingConfig
from drift.weights.config import WeightConfig
from drift.weights.schemes import find_scheme

Place = str | os.PathLike[str]


@by_fields(config=RolloutConfig, sampling=Sampling)
def rollout(
    environment: Any = "arithmetic",
    *,
    model: Any = "default",
    out: Place | None = None,
    config: RolloutConfig,
    sampling: Sampling,
    split: str = "train",
    seed: int = 1,
    device: str = "auto",
    policy: Mapping[str, Any] | None = None,
    concurrency: int = CONCURRENCY,
    cluster: ClusterConfig | None = None,
) -> Artifact:
    """Hold K conversations for each task of an environment; go on where an earlier call stopped.

    Args:
        environment: a registered name, module:attribute, either with its settings as {name: guess, width: 20}, or an
            object.
        model: whose replies: default (the small one that comes with drift), a model folder, a hub id, openai:NAME,
            vllm:NAME, module:attribute, or an object.
        out: directory of the trajectories; runs/ENVIRONMENT/rollouts unless given.
        split: split of the tasks, train or test.
        seed: decides tasks and samples.
        device: where the model computes: auto, cpu, cuda, …
        policy: settings of the policy, such as engine (hf unless given, vllm or openai) and dtype.
        concurrency: the most conversations open at once; with a cluster, on each worker.
        cluster: workers on many machines that hold the conversations.

    Raises:
        ConfigError: settings that can't be; names the nearest known one.
        DatasetError: out was begun with other settings.
    """
    from drift.rollouts.run import roll_out

    setup = Setup(environment=environment, model=model, policy=policy or {}, device=device)
    place = Path(out or Path("runs") / _folder_name(setup) / "rollouts")
    roll_out(setup, config, sampling, place, split=split, seed=seed, concurrency=concurrency, cluster=_cluster(cluster))
    return Artifact(place, TRAJECTORIES)


@by_fields()
def read_logs(
    file: Place,
    *,
    model: str = "default",
    out: Place | None = None,
    format: str = "auto",
    columns: Mapping[str, Any] | None = None,
    max_length: int = 0,
    strict: bool = False,
) -> Artifact:
    """Turn logged conversations with rewards into trajectories, in the ids of the model to be trained.

    Args:
        file: JSON Lines, JSON, CSV or Parquet, as it is or packed with gzip or zstd; a folder of such files, or a data
            set of the hub, owner/name; or a directory of trajectories that are text alone.
        model: the model to be trained, whose chat template makes the ids: default, a folder or a hub id.
        out: directory of the trajectories; runs/FILE/logged unless given. An interrupted import there goes on.
        format: auto finds out what each row is; or messages, pair, samples, preference, request, art, langfuse, otel,
            drift, mathdial, trajectories, or one that another package registers.
        columns: where the log has what, as {reward: feedback.score, messages: chat, roles: {agent: assistant}}; also
            success, id, group, system, tools, role, content, values ({thumbs_up: 1}) and prefixes (fold or keep).
        max_length: the most tokens a prompt and its reply may hold; 0 takes the model's limit.
        strict: fail, before anything is written, if any row is bad or loses something that changes what was said.

    Raises:
        ConfigError: no such format or column setting; names the nearest known one.
        DatasetError: the file can't be read.
    """
    from drift.dataset.imports.run import import_file

    place = Path(out or Path("runs") / Path(file).stem / "logged")
    import_file(
        Path(file),
        place,
        format=format,
        settings=columns or {},
        model=os.fspath(model),
        max_length=max_length,
        strict=strict,
    )
    return Artifact(place, TRAJECTORIES)


@by_fields()
def rank(data: Place, *, out: Place | None = None, judge: Mapping[str, Any] | None = None) -> Artifact:
    """Let a judge rank the conversations of each prompt against each other, for drift weigh --rewards.

    Args:
        data: directory of trajectories.
        out: directory of the rewards; ranking beside data unless given. What was ranked there is not asked again.
        judge: settings of the verifier judge, such as {policy: openai:NAME}; the small policy that comes with drift
            is no judge.

    Raises:
        DatasetError: no prompt has two conversations.
        EnvironmentFault: nothing of what the judge said could be read.
    """
    from drift.evaluation.ranking import rank_dataset

    place = Path(out or Path(data).parent / "ranking")
    rank_dataset(Path(data), judge or {}, place)
    return Artifact(place, REWARDS)


def weigh(
    data: Place,
    scheme: str | Mapping[str, Any] | Callable[..., Any] = "drift",
    *,
    out: Place | None = None,
    rewards: Place | None = None,
    config: WeightConfig | None = None,
    **settings: Any,
) -> Artifact:
    """Weigh conversations by their return.

    Args:
        data: directory of trajectories.
        scheme: name of a scheme, module:function, or a function (returns_N, group_N, *, …) -> weights_N.
        out: directory of the weights; weights beside data unless given.
        rewards: to be used instead of those in data: a directory that rank wrote, or a Parquet file with the columns id
            and reward. They are what counts unless outcome says otherwise.
        config: how to weigh, instead of scheme; settings change it.
        settings: fields of WeightConfig (beta=0.1, steps=["drop_unsolved"]) and settings of the scheme (w_max=9).

    Raises:
        ConfigError: an unknown scheme, step or setting; names the nearest known one.
    """
    from drift.weights.stage import weigh_dataset

    place = Path(out or Path(data).parent / "weights")
    chosen = None if rewards is None else Path(rewards)
    weigh_dataset(Path(data), weight_config(scheme, settings, config), place, rewards=chosen)
    return Artifact(place, WEIGHTS)


def weight_config(scheme: Any, settings: Mapping[str, Any], config: WeightConfig | None = None) -> WeightConfig:
    """Settings by keyword as a ``WeightConfig``, or as changes of ``config``: what is no field is the scheme's own."""
    scheme = scheme if config is None else config.scheme
    known = {each.name for each in fields(WeightConfig)} - {"scheme"}
    own = {key: value for key, value in settings.items() if key not in known}
    if own:
        name: Any = next(iter(scheme)) if isinstance(scheme, Mapping) else scheme
        more = scheme[name] if isinstance(scheme, Mapping) else {}
        theirs = settings_of(find_scheme(name).function)
        for key in own:
            if key not in theirs:
                where = f"drift.weigh with the scheme {name_of(name)!r}"
                raise unknown_name("argument", key, [*known, *theirs, "out", "config"], where=where)
        scheme = {name: {**more, **own}}
    given = {key: value for key, value in settings.items() if key in known}
    return make_record(WeightConfig, {"scheme": scheme, **given}, config)  # type: ignore[no-any-return]


@by_fields(config=TrainingConfig)
def train(
    data: Place,
    weights: Place,
    *,
    model: Place = "default",
    out: Place | None = None,
    config: TrainingConfig,
    seed: int = 1,
    device: str = "auto",
    any_policy: bool = False,
) -> Artifact:
    """Fine-tune a model on weighted conversations; go on where an earlier call stopped.

    Args:
        data: directory of trajectories.
        weights: directory of their weights, or a Parquet file with the columns id and weights made by anything.
        model: the model that sampled the conversations: default, a folder or a hub id.
        out: the model folder; model beside weights unless given.
        seed: decides the order of the rows.
        device: where to train: auto, cpu, cuda, …
        any_policy: accept conversations that another model sampled.

    Raises:
        ConfigError: settings that can't be; names the nearest known one.
        DatasetError: data or weights are missing or damaged, or don't belong together or to model.
        TrainingError: nothing is left to train on, or the loss stopped being finite.
    """
    from drift.training.launch import needs_launch, train_in_processes
    from drift.training.run import train_model

    place = Path(out or Path(weights).parent / "model")
    more: dict[str, Any] = {"model": os.fspath(model), "seed": seed, "device": device, "any_policy": any_policy}
    if needs_launch(config):
        places = {"data": os.fspath(data), "weights": os.fspath(weights), "out": str(place)}
        train_in_processes({**places, "config": config.to_dict(), **more}, config.num_processes)
    else:
        train_model(Path(data), Path(weights), config, place, **more)
    return Artifact(place, MODEL)


@by_fields(config=EvaluationConfig, sampling=Sampling)
def evaluate(
    environment: Any = "arithmetic",
    models: Any = "default",
    *,
    out: Place | None = None,
    config: EvaluationConfig,
    sampling: Sampling,
    seen: Place | None = None,
    seed: int = 1,
    device: str = "auto",
    policy: Mapping[str, Any] | None = None,
    concurrency: int = CONCURRENCY,
    cluster: ClusterConfig | None = None,
) -> Artifact:
    """Measure models on the same held-out tasks.

    Args:
        environment: as for rollout; or a directory of trajectories, such as an imported log, on whose prompts that seen
            holds out the likelihood of logged replies is measured.
        models: models by name, the first of which the others are compared with: {base: default, tuned: run/model}.
        out: directory of the evaluation; evaluation beside the last model's folder, or runs/ENVIRONMENT/evaluation.
        seen: rollouts whose tasks must not be measured on; of a log, the weights made with the step hold_out.
        seed: decides tasks and samples.
        device: where the models compute: auto, cpu, cuda, …
        policy: settings of the policies, such as engine and dtype; under the name of one those that are its alone, as
            {engine: vllm, tuned: {dtype: float32}}.
        concurrency: the most conversations open at once; with a cluster, on each worker.
        cluster: workers on many machines that hold the conversations.

    Raises:
        ConfigError: no models, settings that can't be, or tasks that were seen.
        DatasetError: out holds another evaluation.
    """
    from drift.evaluation.run import evaluate_policies

    named = models if isinstance(models, Mapping) else {"model": models}
    if isinstance(environment, str | os.PathLike) and (Path(environment) / MANIFEST).is_file():
        from drift.evaluation.likelihood import evaluate_log

        sound = seen is not None
        require(sound, "seen", seen, f"the weights that were trained, made of {environment} with steps: [hold_out]")
        place = Path(out or Path(str(seen)).parent / LIKELIHOOD)
        more: dict[str, Any] = {"config": config, "sampling": sampling, "device": device}
        more["dtype"] = str((policy or {}).get("dtype", "auto"))
        evaluate_log(Path(environment), Path(str(seen)), named, place, **more)
        return Artifact(place, LIKELIHOOD)
    setup = Setup(environment=environment, policy=policy or {}, device=device)
    last = list(named.values())[-1] if named else "default"
    beside = isinstance(last, str | os.PathLike) and kind_of(last)[0] == "hf" and Path(last).is_dir()
    place = Path(out or (Path(last).parent if beside else Path("runs") / _folder_name(setup)) / "evaluation")
    evaluate_policies(
        setup,
        named,
        config,
        sampling,
        place,
        seed=seed,
        seen=None if seen is None else Path(seen),
        concurrency=concurrency,
        cluster=_cluster(cluster),
    )
    return Artifact(place, EVALUATION)


@by_fields()
def report(run: Place, *, out: Place | None = None) -> Page:
    """Write one self-contained HTML page about a run.

    Args:
        run: directory of a run or a comparison, or any that holds evaluation.
        out: the page; report.html in the directory unless given.
    """
    from drift.reporting.page import write_report

    return Page(write_report(Path(run), Path(out) if out is not None else Path(run) / "report.html"))


@by_fields()
def preview(
    data: Place, weights: Place, *, out: Place | None = None, rows: int = 12, max_length: int | None = None
) -> Preview:
    """Show conversations as text with what will be trained, what it weighs, and what is left out and why.

    Args:
        data: directory of trajectories.
        weights: directory of their weights, or a Parquet file with the columns id and weights made by anything.
        out: a self-contained HTML page of it, if wanted.
        rows: how many conversations, from the largest weight to the smallest.
        max_length: as for train: rows that are longer are left out.
    """
    from drift.files import write_atomic
    from drift.reporting.page import preview_page

    made = make_preview(Path(data), Path(weights), rows=rows, max_length=max_length)
    if out is None:
        return made
    write_atomic(Path(out), preview_page(made).encode("utf-8", errors="replace"))
    return replace(made, page=Path(out))


@by_fields()
def view(
    run: Place, *, export: Place | None = None, select: str = "", rows: int = 20, model: str = "", port: int = 0
) -> Page | None:
    """Look at stages and conversations in a browser, finished or not, until Ctrl-C; or write some of them as a page.

    Args:
        run: directory of a run, or of one stage.
        export: a self-contained HTML page to write instead.
        select: what the page holds, as the address of a list or a conversation says it after the question mark, such as
            data=rollouts&success=no&sort=-weight, or id=ID.
        rows: the most conversations on the page.
        model: whose tokenizer shows a reply's tokens, where the run doesn't say: default, a folder or a hub id.
        port: where the viewer is on this machine; one that is free unless given.

    Raises:
        ConfigError: a selection that can't be, or starlette and uvicorn are not installed.
        DatasetError: there is nothing of drift in run.
        StorageError: the port is taken, or the disk refuses.
    """
    if export is None:
        from drift.viewer.server import serve

        serve(Path(run), port=port, model=model)
        return None
    from drift.files import write_atomic
    from drift.viewer.export import export_page

    page = export_page(Path(run), select, rows=rows, model=model)
    write_atomic(Path(export), page.encode("utf-8", errors="replace"))
    return Page(Path(export))


@by_fields(config=ExportConfig)
def export(
    data: Place, *, out: Place, weights: Place | None = None, model: str = "", merge: bool = False, config: ExportConfig
) -> dict[str, Any]:
    """Write conversations as rows for other trainers (DPO, KTO, SFT); returns the rows' manifest and their ``file``.

    Args:
        data: directory of trajectories; with merge a LoRA adapter, or a model folder that holds one.
        out: the file, JSON Lines in TRL's schema; its manifest lies beside it.
        weights: directory of their weights, which the formats sft and sft-sharegpt need.
        model: the model to be trained, to count where rendering the rows gives other ids than were sampled; with merge
            the adapter's base, unless that is the one it names.
        merge: write the base with an adapter added to its weights instead, as an ordinary model folder.
    """
    if merge:
        from drift.publishing.merge import merge_adapter

        return {"file": os.fspath(merge_adapter(Path(data), Path(out), model=model)), "counts": {}, "rendered": None}
    from drift.exports.run import export_dataset

    tokenizer = None
    if model:
        from drift.policies.hf import load_tokenizer

        tokenizer = load_tokenizer(model_path(model))
    place = None if weights is None else Path(weights)
    made = export_dataset(Path(data), Path(out), config, weights=place, tokenizer=tokenizer)
    return {"file": os.fspath(out), **made}


@by_fields(config=PreferenceConfig)
def train_preference(
    data: Place,
    *,
    model: Place = "default",
    out: Place | None = None,
    config: PreferenceConfig,
    seed: int = 1,
    device: str = "auto",
    any_policy: bool = False,
) -> Artifact:
    """Train with DPO or KTO on the same conversations, through TRL.

    Args:
        data: directory of trajectories.
        model: the model that sampled the conversations: default, a folder or a hub id.
        out: the model folder; the format beside data unless given.
        seed: decides the order of the rows.
        device: where to train: auto, cpu, cuda, …
        any_policy: accept conversations that another model sampled.
    """
    from drift.baselines.preference import train_preference

    place = Path(out or Path(data).parent / config.format)
    more: dict[str, Any] = {"seed": seed, "device": device, "any_policy": any_policy}
    train_preference(Path(data), place, model=os.fspath(model), config=config, **more)
    return Artifact(place, MODEL)


@by_fields(config=OnlineConfig, sampling=Sampling)
def train_online(
    environment: Any = "arithmetic",
    *,
    model: Place = "default",
    out: Place | None = None,
    config: OnlineConfig,
    sampling: Sampling,
    seed: int = 1,
    device: str = "auto",
) -> Artifact:
    """Train with GRPO on conversations that are held meanwhile, through TRL.

    Args:
        environment: as for rollout.
        model: the model to start from: default, a folder (one that train wrote, say) or a hub id.
        out: the model folder; runs/ENVIRONMENT/online unless given.
        seed: decides tasks, their order and the conversations.
        device: where to sample and train: auto, cpu, cuda, …
    """
    from drift.baselines.online import train_online

    setup = Setup(environment=environment)
    place = Path(out or Path("runs") / _folder_name(setup) / "online")
    factory = setup.make_environment()
    config = replace(config, sampling=sampling)
    train_online(setup.record, factory, place, model=os.fspath(model), config=config, seed=seed, device=device)
    return Artifact(place, MODEL)


def _cluster(given: ClusterConfig | Mapping[str, Any] | None) -> ClusterConfig | None:
    return make_record(ClusterConfig, given) if isinstance(given, Mapping) else given


def _folder_name(setup: Setup) -> str:
    name = str(setup.record["name"])
    if not name:
        raise ConfigError("environment: got no name, expected one of drift's, module:attribute or an object.")
    return name.rpartition(":")[2].replace(".", "-").lower()
