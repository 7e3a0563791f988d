"""Any causal language model that transformers can load, local or from the hub, sampled with a seed per request."""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, GenerationConfig

from drift.chat import TemplateChat
from drift.errors import ConfigError, PolicyError, require
from drift.policies.base import Sampling, with_template_arguments
from drift.policies.decoding import Decoder, Stopped
from drift.policies.fingerprint import end_ids, fingerprint
from drift.policies.rows import SHOWN, Row, RowPicker
from drift.policies.stored import NO_CODE, check_stored, context_limit, fingerprint_of, loading, model_folder
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
    place = check_device(device)
    wanted = DTYPES.get(dtype, torch.float32 if place == "cpu" else "auto")
    source = model_folder(model)
    with loading(model):
        tokenizer = AutoTokenizer.from_pretrained(source, padding_side="left", **NO_CODE)
        loaded = AutoModelForCausalLM.from_pretrained(
            source, dtype=wanted, attn_implementation=attention, use_safetensors=True, **NO_CODE
        )
        loaded = loaded.to(place).eval()
    return loaded, tokenizer


def lay_out_for_few_rows(model: Any) -> None:
    """Store weights of layers by columns, values unchanged: products with few rows, as sampling has, are faster so.

    Not those of the head, which is wide enough for it to be slower, and may be the embedding's too.
    """
    head = model.get_output_embeddings()
    for layer in model.modules():
        if type(layer) is torch.nn.Linear and layer is not head:
            layer.weight.data = layer.weight.data.t().contiguous().t()


def check_device(device: str) -> str:
    """Where ``device`` is, with ``auto`` settled; raises ``ConfigError`` where torch finds no such device here."""
    place = device if device != "auto" else "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.empty(1, device=place)
    except (RuntimeError, AssertionError, ImportError) as error:
        reason = str(error).splitlines()[0]
        raise ConfigError(
            f"device: got {device!r}, expected auto, cpu or a device that torch finds here: {reason}. "
            "nvidia-smi says whether a GPU is there."
        ) from error
    return place


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
        settings = AutoConfig.from_pretrained(model_folder(model), **NO_CODE)
    try:
        empty_model(settings, attention)
    except (ImportError, ValueError) as error:
        raise ConfigError(
            f"training.attention: {attention} can't be used with model {model!r}: {error} Set it to auto."
        ) from error


def empty_model(settings: Any, attention: str | None = None) -> Any:
    """A causal LM with these ``settings`` and no weights: its modules alone, in no memory."""
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(settings, attn_implementation=attention, **NO_CODE)


def load_tokenizer(model: str) -> Any:
    """Load the tokenizer of a model, a folder or a hub id, without its weights; raises ``PolicyError``."""
    source = model_folder(model)
    with loading(model):
        return AutoTokenizer.from_pretrained(source, padding_side="left", **NO_CODE)


class HFPolicy:
    """A transformers causal LM with its own chat template.

    Replies are computed side by side, and a conversation goes on from what was computed before (see ``decoding``). In
    float32 that changes no token of any reply (see ``pick``); in 16-bit floats it can.

    Args:
        model: a folder, or a hub id.
        dtype: ``float32``, ``bfloat16``, ``float16``, or ``auto``: float32 on a CPU, the checkpoint's own elsewhere.
        device: ``cpu``, ``cuda``, …, or ``auto``: CUDA if there is one.
        batch_size: the most replies computed at once; 0 is as many as are of use and fit in memory.
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
        batch_size: int = 0,
        chat_template_kwargs: Mapping[str, Any] | None = None,
        system: str = "",
        prefill: str = "",
    ) -> None:
        require(batch_size >= 0, "policy.batch_size", batch_size, "a whole number ≥ 0")
        loaded, tokenizer = load_model(model, dtype=dtype, device=device)
        arguments = dict(chat_template_kwargs or {})
        self.fingerprint = with_template_arguments(fingerprint_of(model), arguments, system, prefill)
        self.chat = TemplateChat(tokenizer, source=model, arguments=arguments, system=system, prefill=prefill)
        if loaded.device.type == "cpu" and loaded.dtype == torch.float32:
            lay_out_for_few_rows(loaded)
        self._take_model(loaded, tokenizer, model, batch_size)

    @staticmethod
    def check(model: str, **settings: Any) -> None:
        """Find wrong what can be without loading weights; arguments and errors are the policy's."""
        check_device(settings.get("device", "auto"))
        dtype, batch_size = settings.get("dtype", "auto"), settings.get("batch_size", 0)
        require(dtype in (*DTYPES, "auto"), "policy.dtype", dtype, f"auto or one of {', '.join(DTYPES)}")
        require(batch_size >= 0, "policy.batch_size", batch_size, "a whole number ≥ 0")
        check_stored(model, settings.get("chat_template_kwargs"), settings.get("system", ""))

    @classmethod
    def of(cls, model: Any, tokenizer: Any, *, source: str, batch_size: int = 0) -> HFPolicy:
        """A policy of a model that is already loaded, and that may change: it samples with the weights of the moment.

        Args:
            model: a causal LM; its generation settings are replaced.
            tokenizer: its tokenizer, padding on the left.
            source: how messages name it.
            batch_size: the most replies computed at once; 0 is as many as are of use and fit in memory.
        """
        policy = cls.__new__(cls)
        policy.fingerprint = fingerprint(model, tokenizer)
        policy.chat = TemplateChat(tokenizer, source=source)
        policy._take_model(model, tokenizer, source, batch_size)
        return policy

    def _take_model(self, model: Any, tokenizer: Any, source: str, batch_size: int) -> None:
        self._model, self._tokenizer, self._source = model, tokenizer, source
        self.context_length: int | None = context_limit(self._model.config)
        self._known_ids = id_count(tokenizer)
        self._eos_ids = end_ids(self._model, self._tokenizer)
        pad = self._tokenizer.pad_token_id
        pad_id = int(pad if pad is not None else self._eos_ids[0])
        # The model folder's own generation settings (top-k, penalties) would bend the distribution we record.
        self._model.generation_config = GenerationConfig(eos_token_id=self._eos_ids, pad_token_id=pad_id)
        self._picker = RowPicker(model, tokenizer, source, self._eos_ids)
        self._decoder = Decoder(model, self._picker, pad_id, batch_size, source)
        self._asked: deque[Row] = deque()
        self._open: set[Row] = set()
        self._stop = threading.Event()
        self._pump: asyncio.Task[None] | None = None
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="drift-hf")

    @property
    def tokens_sampled(self) -> int:
        """So far, those of replies under way among them."""
        return self._picker.picked

    @property
    def tokens_decided_again(self) -> int:
        """How many of them were in doubt, and so picked from logits of their row alone."""
        return self._picker.decided_again

    async def complete(self, prompt_ids: tuple[int, ...], *, sampling: Sampling, seed: int) -> Completion:
        """Sample one reply; waits until it is at its end."""
        rows = self._model.get_input_embeddings().weight.shape[0]
        if max(prompt_ids, default=0) >= rows:
            raise PolicyError(
                f"the prompt {self._tokenizer.decode(prompt_ids)[-SHOWN:]!r} has the id {max(prompt_ids)}, and the "
                f"model {self._source!r} has {rows} ids. Use the tokenizer that the model was trained with."
            )
        loop = asyncio.get_running_loop()
        row = Row(prompt_ids, sampling, seed, loop.create_future())
        self._open.add(row)
        self._asked.append(row)
        if self._pump is None or self._pump.done():
            self._pump = loop.create_task(self._serve())
        assert row.reply is not None
        try:
            return await row.reply
        finally:
            self._open.discard(row)

    async def aclose(self) -> None:
        """Stop what is under way, and let go of what is kept of conversations; a later request starts again."""
        pump = self._pump
        if pump is not None and not pump.done() and pump.get_loop() is asyncio.get_running_loop():
            pump.cancel()
            await asyncio.wait([pump])
        self._decoder.forget()

    async def _serve(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            # Let every conversation that is ready put its request in before the first are computed.
            count = -1
            while count != len(self._asked):
                count = len(self._asked)
                await asyncio.sleep(0)
            if not self._asked:
                return
            self._stop.clear()
            work = loop.run_in_executor(self._thread, self._work)
            try:
                await asyncio.shield(work)
            except asyncio.CancelledError:
                self._stop.set()
                await asyncio.wait([work])
                self._asked.clear()
                raise
            except Exception as error:
                self._asked.clear()
                for row in self._open:
                    if row.reply is not None and not row.reply.done():
                        row.reply.set_exception(error)
                return

    @torch.inference_mode()
    def _work(self) -> None:
        """Serve all requests there are, on a thread of its own, until there are none or it is told to stop."""

        def arrived() -> list[Row]:
            return [self._asked.popleft() for _ in range(len(self._asked))]

        def done(row: Row) -> None:
            completion = self._completion(row)
            if row.reply is not None:
                row.reply.get_loop().call_soon_threadsafe(_settle, row.reply, completion)

        def check(*_: Any) -> None:
            if self._stop.is_set():
                raise Stopped

        # Also within a forward pass, which may take long: before each layer.
        lists = (each for each in self._model.modules() if isinstance(each, torch.nn.ModuleList))
        hooks = [layer.register_forward_pre_hook(check) for layers in lists for layer in layers]
        try:
            self._decoder.serve(arrived, done)
        except Stopped:
            self._decoder.forget()
        finally:
            for hook in hooks:
                hook.remove()

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


def _settle(reply: asyncio.Future[Completion], completion: Completion) -> None:
    if not reply.done():
        reply.set_result(completion)


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
