"""Coroutines are run to their end wherever they are started from."""

import asyncio
import contextvars
import gc
import os
import signal
import sys
import threading
import time

import pytest

from drift.event_loop import run_to_end


async def answer(value):
    await asyncio.sleep(0)
    return value


async def refuse():
    raise ValueError("no")


def test_from_plain_code_and_within_a_running_loop():
    assert run_to_end(answer(3)) == 3

    async def cell():
        return run_to_end(answer(4))

    assert asyncio.run(cell()) == 4


def test_what_it_raises_is_raised_within_a_running_loop():
    async def cell():
        run_to_end(refuse())

    with pytest.raises(ValueError, match="no"):
        asyncio.run(cell())


def test_context_variables_are_seen():
    told = contextvars.ContextVar("told", default="nothing")

    async def look():
        return told.get()

    async def cell():
        told.set("something")
        return run_to_end(look())

    assert asyncio.run(cell()) == "something"


def test_ctrl_c_within_a_running_loop_ends_the_work_in_order():
    ended = []

    async def long():
        try:
            await asyncio.sleep(60)
        finally:
            ended.append(True)

    async def cell():
        # As in a notebook: the loop's own handler is not the one that answers Ctrl-C.
        signal.signal(signal.SIGINT, signal.default_int_handler)
        threading.Thread(target=lambda: (time.sleep(0.2), signal.pthread_kill(main, signal.SIGINT))).start()
        run_to_end(long())

    main, before = threading.main_thread().ident, signal.getsignal(signal.SIGINT)
    loop = asyncio.new_event_loop()
    try:
        with pytest.raises(KeyboardInterrupt):
            loop.run_until_complete(cell())
        assert ended == [True]
    finally:
        signal.signal(signal.SIGINT, before)
        loop.close()


def test_a_signal_while_the_loop_is_made_leaves_no_half_of_one(monkeypatch):
    def stop(number, frame):
        raise KeyboardInterrupt

    def make(loop):
        os.kill(os.getpid(), signal.SIGUSR1)
        time.sleep(0.01)
        return made(loop)

    made = asyncio.SelectorEventLoop._make_self_pipe
    said = []
    before = signal.signal(signal.SIGUSR1, stop)
    try:
        monkeypatch.setattr(asyncio.SelectorEventLoop, "_make_self_pipe", make)
        monkeypatch.setattr(sys, "unraisablehook", said.append)
        with pytest.raises(KeyboardInterrupt):
            run_to_end(answer(1))
        gc.collect()
    finally:
        signal.signal(signal.SIGUSR1, before)
    assert [error.exc_value for error in said if not isinstance(error.exc_value, ResourceWarning)] == []
