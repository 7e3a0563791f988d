"""Any causal language model that transformers can load, local or from the hub, sampled with a seed per request."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, GenerationConfig

from drift.chat import TemplateChat
from drift.errors import ConfigError, PolicyError, require
from drift.policies.base import Sampling, with_template_arguments
from drift.policies.fingerprint import end_ids, fingerprint
from drift.policies.generated import generate
from drift.policies.rows import SHOWN, Row, RowPicker
from drift.policies.stored import NO_CODE, check_stored, context_limit, fingerprint_of, loading, local_folder
from drift.types import Completion

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def load_model(
    model: str, *, dtype: str = "auto", device: str = "auto", attention: str | None = None
) -> tuple[Any, Any]:
    """Load a causal LM and its tokenizer.

    Args:
        model: a folder, or a hub id.
        dtype: ``float32``, ``bfloat16``, ``float16``, or ``auto``: float32 on a CPU, the checkpoint's own elsewhere.
        device: ``cpu``, ``cuda``, …, or ``auto``: CUDA if there is one.
        attention: transformers' name of an attention implementation; ``None`` takes the model's own.

    Raises:
        PolicyError: no such model, not a causal LM, or the tokenizer can't be read.
    """
    require(dtype in (*DTYPES, "auto"), "policy.dtype", dtype, f"auto or one of {', '.join(DTYPES)}")
    place = device if device != "auto" else "cuda" if torch.cuda.is_available() else "cpu"
    wanted = DTYPES.get(dtype, torch.float32 if place == "cpu" else "auto")
    source = local_folder(model) or model
    with loading(model):
        tokenizer = AutoTokenizer.from_pretrained(source, padding_side="left", **NO_CODE)
        loaded = AutoModelForCausalLM.from_pretrained(
            source, dtype=wanted, attn_implementation=attention, use_safetensors=True, **NO_CODE
        )
        loaded = loaded.to(place).eval()
    return loaded, tokenizer


def check_attention(model: str, attention: str, *, device: str = "auto") -> None:
    """Refuse an attention implementation that a model can't be trained with here, before its weights are read.

    Args:
        model: a folder, or a hub id.
        attention: transformers' name of the implementation.
        device: where to train; see ``load_model``.

    Raises:
        ConfigError: its library is not installed, the model does not support it, or it has no gradients on a CPU.
        PolicyError: the model's configuration can't be read.
    """
    on_cpu = device == "cpu" or (device == "auto" and not torch.cuda.is_available())
    require(
        not on_cpu or attention in ("sdpa", "eager"),
        "training.attention",
        attention,
        "auto, sdpa or eager on a CPU, where neither flash attention nor the gradients of flex attention can be had",
    )
    with loading(model):
        settings = AutoConfig.from_pretrained(local_folder(model) or model, **NO_CODE)
    try:
        # A model without weights.
        with torch.device("meta"):
            AutoModelForCausalLM.from_config(settings, attn_implementation=attention, **NO_CODE)
    except (ImportError, ValueError) as error:
        raise ConfigError(
            f"training.attention: {attention} can't be used with model {model!r}: {error} Set it to auto."
        ) from error


def load_tokenizer(model: str) -> Any:
    """Load the tokenizer of a model, a folder or a hub id, without its weights; raises ``PolicyError``."""
    source = local_folder(model) or model
    with loading(model):
        return AutoTokenizer.from_pretrained(source, padding_side="left", **NO_CODE)


class HFPolicy:
    """A transformers causal LM with its own chat template.

    Requests that wait at the same time are batched by length and sent through ``generate``. In float32 the batch
    changes no token of any reply (see ``pick``); in 16-bit floats it can.

    Args:
        model: a folder, or a hub id.
        dtype: ``float32``, ``bfloat16``, ``float16``, or ``auto``: float32 on a CPU, the checkpoint's own elsewhere.
        device: ``cpu``, ``cuda``, …, or ``auto``: CUDA if there is one.
        batch_size: the most requests in one batch.
        chat_template_kwargs: what the chat template is given beside the messages, such as {enable_thinking: false}.
        system: a system message that stands first in every conversation, before the environment's own.
        prefill: how every reply begins, such as <think>. It is read, not sampled, and so is never trained.

    Raises:
        ConfigError: a setting is out of range, or the chat template knows no such argument.
        PolicyError: the model can't be loaded, or has no chat template.
    """

    def __init__(
        self,
        model: str,
        *,
        dtype: str = "auto",
        device: str = "auto",
        batch_size: int = 128,
        chat_template_kwargs: Mapping[str, Any] | None = None,
        system: str = "",
        prefill: str = "",
    ) -> None:
        require(batch_size >= 1, "policy.batch_size", batch_size, "a whole number ≥ 1")
        loaded, tokenizer = load_model(model, dtype=dtype, device=device)
        arguments = dict(chat_template_kwargs or {})
        self.fingerprint = with_template_arguments(fingerprint_of(model), arguments, system, prefill)
        self.chat = TemplateChat(tokenizer, source=model, arguments=arguments, system=system, prefill=prefill)
        self._take_model(loaded, tokenizer, model, batch_size)

    @staticmethod
    def check(model: str, **settings: Any) -> None:
        """Find wrong what can be without loading weights; arguments and errors are the policy's."""
        dtype, batch_size = settings.get("dtype", "auto"), settings.get("batch_size", 1)
        require(dtype in (*DTYPES, "auto"), "policy.dtype", dtype, f"auto or one of {', '.join(DTYPES)}")
        require(batch_size >= 1, "policy.batch_size", batch_size, "a whole number ≥ 1")
        check_stored(model, settings.get("chat_template_kwargs"), settings.get("system", ""))

    @classmethod
    def of(cls, model: Any, tokenizer: Any, *, source: str, batch_size: int = 128) -> HFPolicy:
        """A policy of a model that is already loaded, and that may change: it samples with the weights of the moment.

        Args:
            model: a causal LM; its generation settings are replaced.
            tokenizer: its tokenizer, padding on the left.
            source: how messages name it.
            batch_size: the most requests in one batch.
        """
        policy = cls.__new__(cls)
        policy.fingerprint = fingerprint(model, tokenizer)
        policy.chat = TemplateChat(tokenizer, source=source)
        policy._take_model(model, tokenizer, source, batch_size)
        return policy

    def _take_model(self, model: Any, tokenizer: Any, source: str, batch_size: int) -> None:
        self._model, self._tokenizer, self._source = model, tokenizer, source
        self.context_length: int | None = context_limit(self._model.config)
        self._batch_size = batch_size
        self._known_ids = id_count(tokenizer)
        self._eos_ids = end_ids(self._model, self._tokenizer)
        pad = self._tokenizer.pad_token_id
        self._pad_id = int(pad if pad is not None else self._eos_ids[0])
        # The model folder's own generation settings (top-k, penalties) would bend the distribution we record.
        self._model.generation_config = GenerationConfig(eos_token_id=self._eos_ids, pad_token_id=self._pad_id)
        self._picker = RowPicker(model, tokenizer, source, self._eos_ids)
        self._waiting: list[Row] = []
        self._pump: asyncio.Task[None] | None = None
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="drift-hf")

    async def complete(self, prompt_ids: tuple[int, ...], *, sampling: Sampling, seed: int) -> Completion:
        """Sample one reply; waits until a batch with it has run."""
        rows = self._model.get_input_embeddings().weight.shape[0]
        if max(prompt_ids, default=0) >= rows:
            raise PolicyError(
                f"the prompt {self._tokenizer.decode(prompt_ids)[-SHOWN:]!r} has the id {max(prompt_ids)}, and the "
                f"model {self._source!r} has {rows} ids. Use the tokenizer that the model was trained with."
            )
        loop = asyncio.get_running_loop()
        request = Row(prompt_ids, sampling, seed, loop.create_future())
        self._waiting.append(request)
        if self._pump is None or self._pump.done():
            self._pump = loop.create_task(self._run_batches())
        return await request.reply

    async def _run_batches(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            # Let every conversation that is ready put its request in before the batch is formed.
            count = -1
            while count != len(self._waiting):
                count = len(self._waiting)
                await asyncio.sleep(0)
            self._waiting = [request for request in self._waiting if not request.reply.done()]
            if not self._waiting:
                return
            batch = self._take()
            try:
                replies = await loop.run_in_executor(self._thread, self._generate, batch)
            except BaseException as error:
                for request in (*batch, *self._waiting):
                    if not request.reply.done():
                        request.reply.set_exception(error)
                self._waiting = []
                if not isinstance(error, Exception):
                    raise
                return
            for request, reply in zip(batch, replies, strict=True):
                if not request.reply.done():
                    request.reply.set_result(reply)

    def _take(self) -> list[Row]:
        """Remove from the queue the batch that wastes the least padding."""
        sampling = self._waiting[0].sampling
        alike = sorted((r for r in self._waiting if r.sampling == sampling), key=lambda r: len(r.prompt_ids))
        size = min(self._batch_size, len(alike))
        lengths = [len(request.prompt_ids) for request in alike]
        start = min(range(len(alike) - size + 1), key=lambda at: lengths[at + size - 1] - lengths[at])
        batch = alike[start : start + size]
        taken = set(map(id, batch))
        self._waiting = [request for request in self._waiting if id(request) not in taken]
        return batch

    @torch.inference_mode()
    def _generate(self, batch: list[Row]) -> list[Completion]:
        generate(self._model, self._picker, batch, self._pad_id)
        return [self._completion(row) for row in batch]

    def _completion(self, row: Row) -> Completion:
        ids = row.reply_ids
        check_known_ids(self._tokenizer, self._known_ids, row.prompt_ids, ids, source=self._source)
        text, thinking = self.chat.parts(row.prompt_ids, ids, self._eos_ids)
        return Completion(
            text=text,
            token_ids=tuple(ids),
            logprobs=tuple(row.logprobs),
            finish_reason="stop" if row.finish == "stop" else "length",
            thinking=thinking,
        )


def id_count(tokenizer: Any) -> int:
    """One more than the largest id that a tokenizer has."""
    return 1 + int(max(tokenizer.get_vocab().values()))


def check_known_ids(
    tokenizer: Any, known: int, prompt_ids: Sequence[int], reply_ids: Sequence[int], *, source: str
) -> None:
    """Refuse a reply of which half or more are ids that the tokenizer lacks: it is not the model's.

    Rows of the embedding that only fill it up are sampled now and then; one such id in a reply is the model's own.

    Args:
        tokenizer: the model's.
        known: its ``id_count``.
        prompt_ids: what the model was prompted with.
        reply_ids: what it replied.
        source: how messages name the model.

    Raises:
        PolicyError: that names model and prompt.
    """
    beyond = [number for number in reply_ids if number >= known]
    if len(beyond) > 1 and 2 * len(beyond) >= len(reply_ids):
        raise PolicyError(
            f"{len(beyond)} of {len(reply_ids)} ids that the model {source!r} replied to the prompt "
            f"{tokenizer.decode(prompt_ids)[-SHOWN:]!r} are beyond its tokenizer, such as {beyond[0]}; expected ids "
            f"below {known}. Use the tokenizer that the model was trained with."
        )
