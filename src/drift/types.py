"""The records that stages hand to one another: frozen, keyword-only, standard library only.

Each record has one producer and is complete when made. ``None`` means "not there" and never stands for zero.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NotRequired, TypedDict, get_args

Role = Literal["system", "user", "assistant", "tool"]
StopReason = Literal["success", "turns", "context", "error"]
FinishReason = Literal["stop", "length", "content_filter", "tool_calls", "refusal"]
TokenNormalization = Literal["sum", "mean"]

STOP_REASONS: tuple[str, ...] = get_args(StopReason)


class Message(TypedDict):
    """One chat message in the form every chat template of the ecosystem takes.

    ``reasoning_content`` is what the assistant thought before it said ``content``. Only what a policy is asked to
    continue has it; records have it as ``Completion.thinking``. ``tool_calls`` are an assistant's, each
    ``{"type": "function", "id"?, "function": {"name", "arguments"}}`` with the arguments as an object (or as the text
    that they were, where it is no object). A tool's message has the ``tool_call_id`` and the ``name`` that it answers.
    """

    role: Role
    content: str
    reasoning_content: NotRequired[str]
    tool_calls: NotRequired[Sequence[Mapping[str, Any]]]
    tool_call_id: NotRequired[str]
    name: NotRequired[str]


@dataclass(frozen=True, kw_only=True)
class Task:
    """One problem that a policy can be asked to solve.

    Attributes:
        id: unique within its source; the same problem always has the same id.
        group_id: the prompt that K trajectories share; weights are normalised within it.
        split: ``train`` or ``test``; the two never share a problem.
        payload: whatever the environment needs to run and verify the task (JSON values only).
    """

    id: str
    group_id: str
    split: str
    payload: Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class Step:
    """What an environment says to one assistant reply.

    Attributes:
        messages: what the environment adds to the conversation; empty when the episode ends here.
        reward: the environment's own scalar for this reply (arbitrary units, higher is better).
        done: the episode is over.
        success: the reply solved the task; ``None`` where nobody judged that, as in most logs.
        answer: the answer in normalised form, compared to count repeats; ``None`` if none could be parsed
            (a format failure, which is not the same as a wrong answer).
        info: anything else worth keeping (JSON values only).
        graded: an answer was asked for here. Where none was (a clarifying question, an explanation), ``answer`` is
            ``None`` and the reply counts neither as an answer nor as a format failure.
    """

    messages: tuple[Message, ...]
    reward: float
    done: bool
    success: bool | None
    answer: str | None
    info: Mapping[str, Any] = field(default_factory=dict)
    graded: bool = True


@dataclass(frozen=True, kw_only=True)
class Completion:
    """One sampled reply.

    Attributes:
        text: the reply as text, without the end-of-turn token and without ``thinking``.
        token_ids: the ids that were sampled, end-of-turn token included when the policy emitted it.
        logprobs: natural-log probability of each id under the policy at temperature 1 and without truncation,
            so that it does not depend on how the id was picked; ``None`` where the policy can't tell.
        finish_reason: ``stop`` (end of turn or stop string) or ``length`` (out of new tokens); of a server also
            ``content_filter`` (cut off by it), ``tool_calls``, or ``refusal`` (``text`` is what it declined with).
        thinking: what was thought before ``text``, where the model's template tells the two apart; empty if nothing.
    """

    text: str
    token_ids: tuple[int, ...]
    logprobs: tuple[float, ...] | None
    finish_reason: FinishReason
    thinking: str = ""


@dataclass(frozen=True, kw_only=True)
class Turn:
    """One assistant turn: the exact ids the policy saw, what it sampled and what the environment said to it.

    Token layout of the training row it can become::

        token_ids = prompt_ids              + completion.token_ids
        sampled   = [False]*len(prompt_ids) + [True]*len(completion.token_ids)

    ``loss_weight`` is what a log says of this reply's loss; its weight is multiplied by it.
    """

    prompt_ids: tuple[int, ...]
    completion: Completion
    step: Step
    loss_weight: float = 1.0


@dataclass(frozen=True, kw_only=True)
class Trajectory:
    """One whole conversation, ``τ = (x_1, y_1, f_1, …, x_L, y_L)`` of method.md section 1.

    One that failed carries the failure in ``error`` and is counted, never dropped: ``server KIND: …`` where the policy
    gave no reply, ``reply KIND: …`` where the last reply is one that can't be gone on from, ``context: …`` where even
    the first prompt was too long; anything else is of the environment.

    Attributes:
        id: ``<task id>#<sample>``, unique within a data set.
        sample: which of the K samples of the task this is, from 0.
        policy: fingerprint of the policy that sampled it.
        seed: the seed its turns' seeds derive from.
        messages: the conversation as chat messages, the opening included.
        stop_reason: why it ended: ``success``, ``turns`` (the environment ended it), ``context`` (the next prompt
            would not fit the policy's context) or ``error``.
        text_only: the policy returned no token ids. Those of every turn are empty, which here means unknown; it can't
            be trained on until ``drift import`` has tokenized it.
        tools: what the assistant could call, as the chat template was told.
    """

    id: str
    task_id: str
    group_id: str
    sample: int
    policy: str
    seed: int
    messages: tuple[Message, ...]
    turns: tuple[Turn, ...]
    stop_reason: StopReason
    error: str | None = None
    text_only: bool = False
    tools: tuple[Mapping[str, Any], ...] = ()

    @property
    def success(self) -> bool | None:
        """Whether the conversation ended with the task solved; ``None`` where nobody judged that."""
        return self.turns[-1].step.success if self.turns else False

    @property
    def tokens_sampled(self) -> int | None:
        """Number of tokens the policy generated over all turns; ``None`` if it did not tell."""
        return None if self.text_only else sum(len(turn.completion.token_ids) for turn in self.turns)


@dataclass(frozen=True, kw_only=True)
class Example:
    """One training row.

    Attributes:
        trajectory_id: where it comes from.
        group_id: the prompt it belongs to.
        token_ids: ``[L]`` the ids of the row, as recorded.
        sampled: ``[L]`` which of them the policy sampled and the loss may touch.
        weight: ``[L]`` what each token's negative log-likelihood is multiplied by; 0 where ``sampled`` is false.
        mass: the largest ``|w|`` of its replies, by which optimizer steps are planned; 0 in rows that nobody plans.
        logprobs: ``[L]`` log-probability of each sampled id under the policy that sampled it; empty if not asked for.
        starts: where each reply begins; empty where only the weights matter.
    """

    trajectory_id: str
    group_id: str
    token_ids: tuple[int, ...]
    sampled: tuple[bool, ...]
    weight: tuple[float, ...]
    mass: float = 0.0
    logprobs: tuple[float, ...] = ()
    starts: tuple[int, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """One measured number with its uncertainty.

    Attributes:
        policy: which policy it describes, or ``a - b`` for a paired difference.
        metric: its name, as in docs/artifacts.md.
        value: the point estimate; ``None`` where nothing was left to measure it on.
        low: lower end of the 95 % interval over prompts.
        high: upper end of the same interval.
        prompts: number of prompts it rests on.
        trajectories: number of trajectories it rests on.
        excluded: trajectories left out because their environment failed.
    """

    policy: str
    metric: str
    value: float | None
    low: float | None
    high: float | None
    prompts: int
    trajectories: int
    excluded: int
