"""Any causal language model that transformers can load, local or from the hub, sampled with a seed per request."""

from __future__ import annotations

import asyncio
import hashlib
import os
from collections.abc import Collection, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, GenerationConfig
from transformers.utils import logging

from drift.chat import TemplateChat
from drift.checksums import damaged_files
from drift.errors import ConfigError, PolicyError, require
from drift.policies.base import Sampling
from drift.policies.sampler import RowEnds, SeededPicker
from drift.types import Completion

# Always given: without it, transformers asks at the terminal whether a model folder's own code may run.
NO_CODE: dict[str, Any] = {"trust_remote_code": False}
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


def local_folder(model: str) -> Path | None:
    """The folder that ``model`` names, its files checked; ``None`` for a hub id; raises ``PolicyError``."""
    folder = Path(model).expanduser()
    if not (folder / "config.json").is_file():
        if model.startswith((".", "/", "~")) or model.count("/") != 1:
            problem = "a folder without config.json" if folder.is_dir() else "nothing there"
            raise PolicyError(
                f"model {model!r}: {problem}. Give a folder that holds a model, or a hub id like owner/name."
            )
        return None
    damage = damaged_files(folder)
    if damage:
        raise PolicyError(
            f"the model in {folder} is damaged: {'; '.join(damage)}. Train it again, or restore the files."
        )
    refuse_pickles(folder)
    return folder


def refuse_pickles(folder: Path) -> None:
    """Raise ``PolicyError`` for a model folder that has only pickled weights: reading these can run anything."""
    pickled = sorted(path.name for name in ("*.bin", "*.pt", "*.pth", "*.ckpt") for path in folder.glob(name))
    if not list(folder.glob("*.safetensors")) and pickled:
        raise PolicyError(
            f"the model in {folder} has its weights as {pickled[0]}, expected *.safetensors: reading pickled weights "
            "can run code. Convert them where you trust them: AutoModelForCausalLM.from_pretrained(FOLDER)"
            ".save_pretrained(OUT), and the tokenizer likewise."
        )


def wants_code(model: str, error: Exception) -> PolicyError | None:
    """The error to raise where transformers refused to run the code that comes with a model, as it always must."""
    if "trust_remote_code" not in str(error):
        return None
    return PolicyError(
        f"the model {model!r} wants code that comes with it to be run, which drift never does. Use a model that "
        "transformers knows, or serve this one yourself and give it as openai:NAME."
    )


@contextmanager
def loading(model: str) -> Iterator[None]:
    """A context in which what transformers raises for a model or tokenizer becomes a ``PolicyError`` that names it."""
    try:
        with without_bars():
            yield
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
        raise wants_code(model, error) or PolicyError(
            f"model {model!r} can't be loaded as a causal language model: {error}. "
            "Check the name, that the files are whole, and that the hub can be reached if it is not a folder."
        ) from error


@contextmanager
def without_bars() -> Iterator[None]:
    """A context in which transformers draws no progress bars: of weights that load in a second they tell nothing."""
    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        # The hub's library warns where bars are switched on against its variable.
        if shown and "HF_HUB_DISABLE_PROGRESS_BARS" not in os.environ:
            logging.enable_progress_bar()


def fingerprint(model: Any, tokenizer: Any) -> str:
    """Hash of what decides a model's replies, without reading every weight.

    Covers the chat template, the vocabulary size, and of each parameter its name, shape and up to 1,024 evenly spaced
    values in bfloat16. Where the model lies and the precision it is loaded in are left out: a copy is the same policy.
    """
    return "hf-" + digest_of(tokenizer, sorted(model.named_parameters()))


def digest_of(tokenizer: Any, tensors_by_name: Iterable[tuple[str, torch.Tensor]], facts: str = "") -> str:
    """Sixteen hexadecimal digits of ``fingerprint``, over tensors in the order given, and ``facts`` before them."""
    digest = hashlib.sha256(f"{tokenizer.chat_template}|{len(tokenizer)}{facts}".encode())
    for name, parameter in tensors_by_name:
        flat = parameter.detach().flatten()
        sample = flat[:: max(1, flat.numel() // 1024)].to(torch.bfloat16).float().cpu()
        digest.update(f"{name}{tuple(parameter.shape)}".encode() + sample.numpy().tobytes())
    return digest.hexdigest()[:16]


@dataclass
class _QueuedPrompt:
    prompt_ids: tuple[int, ...]
    sampling: Sampling
    seed: int
    reply: asyncio.Future[Completion]


class HFPolicy:
    """A transformers causal LM with its own chat template.

    Requests that wait at the same time are batched by length and sent through ``generate``. In float32 the batch
    changes no token of any reply (see ``sampler``); in 16-bit floats it can.

    Args:
        model: a folder, or a hub id.
        dtype: ``float32``, ``bfloat16``, ``float16``, or ``auto``: float32 on a CPU, the checkpoint's own elsewhere.
        device: ``cpu``, ``cuda``, …, or ``auto``: CUDA if there is one.
        batch_size: the most requests in one batch.

    Raises:
        PolicyError: the model can't be loaded, or has no chat template.
    """

    def __init__(self, model: str, *, dtype: str = "auto", device: str = "auto", batch_size: int = 128) -> None:
        require(batch_size >= 1, "policy.batch_size", batch_size, "a whole number ≥ 1")
        loaded, tokenizer = load_model(model, dtype=dtype, device=device)
        self._take_model(loaded, tokenizer, model, batch_size)

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
        policy._take_model(model, tokenizer, source, batch_size)
        return policy

    def _take_model(self, model: Any, tokenizer: Any, source: str, batch_size: int) -> None:
        self._model, self._tokenizer = model, tokenizer
        self.chat = TemplateChat(self._tokenizer, source=source)
        self.fingerprint = fingerprint(self._model, self._tokenizer)
        limit = getattr(self._model.config, "max_position_embeddings", None)
        self.context_length: int | None = int(limit) if limit else None
        self._batch_size = batch_size
        self._eos_ids = end_ids(self._model, self._tokenizer)
        pad = self._tokenizer.pad_token_id
        self._pad_id = int(pad if pad is not None else self._eos_ids[0])
        # The model folder's own generation settings (top-k, penalties) would bend the distribution we record.
        self._model.generation_config = GenerationConfig(eos_token_id=self._eos_ids, pad_token_id=self._pad_id)
        self._exact = next(self._model.parameters()).dtype in (torch.float32, torch.float64)
        self._waiting: list[_QueuedPrompt] = []
        self._pump: asyncio.Task[None] | None = None
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="drift-hf")

    async def complete(self, prompt_ids: tuple[int, ...], *, sampling: Sampling, seed: int) -> Completion:
        """Sample one reply; waits until a batch with it has run."""
        loop = asyncio.get_running_loop()
        request = _QueuedPrompt(prompt_ids, sampling, seed, loop.create_future())
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

    def _take(self) -> list[_QueuedPrompt]:
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
    def _generate(self, batch: list[_QueuedPrompt]) -> list[Completion]:
        sampling = batch[0].sampling
        device = self._model.device
        width = max(len(request.prompt_ids) for request in batch)
        ids_BT = torch.full((len(batch), width), self._pad_id)
        mask_BT = torch.zeros((len(batch), width), dtype=torch.long)
        for row, request in enumerate(batch):
            ids_BT[row, width - len(request.prompt_ids) :] = torch.tensor(request.prompt_ids)
            mask_BT[row, width - len(request.prompt_ids) :] = 1
        mask_BT = mask_BT.to(device)
        canonical = self._logits_alone if self._exact else None
        picker = SeededPicker([request.seed for request in batch], sampling, canonical, mask_BT)
        ends = RowEnds(self._eos_ids, sampling.stop, self._text, width, picker)
        out_BT = self._model.generate(
            input_ids=ids_BT.to(device),
            attention_mask=mask_BT,
            max_new_tokens=sampling.max_new_tokens,
            do_sample=False,
            logits_processor=[picker],
            stopping_criteria=[ends],
        )
        new_BT = out_BT[:, width:].tolist()
        logprobs_BT = torch.stack(picker.logprobs, dim=1).tolist()
        rows = zip(new_BT, logprobs_BT, ends.lengths_B.tolist(), ends.ended_B.tolist(), strict=True)
        completions = []
        for request, (ids, logprobs, length, ended) in zip(batch, rows, strict=True):
            text, thinking = self.chat.parts(request.prompt_ids, ids[:length], self._eos_ids)
            completions.append(
                Completion(
                    text=text,
                    token_ids=tuple(ids[:length]),
                    logprobs=tuple(logprobs[:length]),
                    finish_reason="stop" if ended else "length",
                    thinking=thinking,
                )
            )
        return completions

    def _logits_alone(self, ids_T: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self._model(input_ids=ids_T.unsqueeze(0), use_cache=False).logits[0, -1]
        return logits

    def _text(self, ids: list[int]) -> str:
        return reply_text(self._tokenizer, ids, self._eos_ids)


def reply_text(tokenizer: Any, ids: list[int], ends: Collection[int]) -> str:
    """A reply's ids as text, without the end-of-turn token."""
    kept = len(ids)
    while kept and ids[kept - 1] in ends:
        kept -= 1
    text: str = tokenizer.decode(ids[:kept], skip_special_tokens=True, clean_up_tokenization_spaces=False)
    return text


def end_ids(model: Any, tokenizer: Any) -> list[int]:
    """Every id that ends a reply: the generation settings' and the tokenizer's own."""
    listed = model.generation_config.eos_token_id
    ids = listed if isinstance(listed, list) else [] if listed is None else [listed]
    if tokenizer.eos_token_id is not None:
        ids = [*ids, tokenizer.eos_token_id]
    if not ids:
        raise PolicyError(
            "the model names no end-of-turn token, so no reply would ever end. Set tokenizer.eos_token and save it."
        )
    return sorted(set(map(int, ids)))
