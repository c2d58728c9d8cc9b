"""Signals, without Ray."""

from __future__ import annotations

import os
import signal
import threading
import time

import pytest

from cluster.cli.errors import guarded, status_of
from cluster.run.interrupts import SIGNALS, Asked, Interrupts, Stopped, keep_handlers


@pytest.mark.parametrize("number", SIGNALS)
def test_while_things_start_a_signal_ends_them_at_once(number: signal.Signals) -> None:
    with Interrupts() as interrupts, pytest.raises(Stopped) as stopped:
        os.kill(os.getpid(), number)
        threading.Event().wait(5)
    assert interrupts.requested == stopped.value.signal == number


@pytest.mark.parametrize("number", SIGNALS)
def test_a_deferred_signal_only_asks_and_the_next_one_ends(number: signal.Signals) -> None:
    with Interrupts() as interrupts:
        interrupts.defer()
        os.kill(os.getpid(), number)
        threading.Event().wait(0.05)
        assert interrupts.requested == number
        with pytest.raises(Stopped) as stopped:
            os.kill(os.getpid(), signal.SIGINT)
            threading.Event().wait(5)
        assert stopped.value.signal == number  # the first one is why it ends


def test_the_handlers_before_come_back_and_nohup_is_respected() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with Interrupts() as interrupts:
            os.kill(os.getpid(), signal.SIGHUP)
            threading.Event().wait(0.05)
            assert interrupts.requested is None
        assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
        assert signal.getsignal(signal.SIGINT) == signal.default_int_handler
    finally:
        signal.signal(signal.SIGHUP, before)


def test_in_another_thread_nothing_is_handled() -> None:
    seen: list[object] = []

    def run() -> None:
        with Interrupts() as interrupts:
            seen.append(interrupts.requested)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert seen == [None] and signal.getsignal(signal.SIGINT) == signal.default_int_handler


def test_a_signal_that_got_lost_in_a_callback_ends_the_run_where_its_loop_would_begin() -> None:
    with Interrupts() as interrupts:
        interrupts.requested = signal.SIGTERM  # what the handler leaves, even if its exception is dropped
        with pytest.raises(Stopped) as stopped:
            interrupts.defer()
    assert stopped.value.signal == signal.SIGTERM


@pytest.mark.parametrize(
    ("raised", "status"),
    [(KeyboardInterrupt(), 130), (Stopped("stopped", signal.SIGTERM), 143), (Stopped("bye", signal.SIGHUP), 129)],
)
def test_a_command_ends_with_the_status_of_its_signal(
    raised: KeyboardInterrupt, status: int, capsys: pytest.CaptureFixture[str]
) -> None:
    def command() -> None:
        try:
            raise raised
        except KeyboardInterrupt:
            raise KeyboardInterrupt("go on with: --resume") from None  # as commands add how to go on

    with pytest.raises(SystemExit) as ended:
        guarded(command)()
    assert ended.value.code == status
    assert "go on with: --resume" in capsys.readouterr().err
    assert status_of(raised) == status


def test_the_signal_survives_code_that_makes_a_plain_interrupt_of_it() -> None:
    with pytest.raises(KeyboardInterrupt) as raised, Interrupts():
        try:
            os.kill(os.getpid(), signal.SIGTERM)
            threading.Event().wait(5)
        except Stopped:
            raise KeyboardInterrupt from None
    assert status_of(raised.value) == 143


def test_any_command_treats_sigterm_as_it_treats_ctrl_c(capsys: pytest.CaptureFixture[str]) -> None:
    cleaned = []

    def command() -> None:
        try:
            os.kill(os.getpid(), signal.SIGTERM)
            threading.Event().wait(5)
        finally:
            cleaned.append(True)

    with pytest.raises(SystemExit) as ended:
        guarded(command)()
    assert ended.value.code == 143 and cleaned
    assert "stopped" in capsys.readouterr().err


def test_the_alarm_that_ray_aborts_with_is_taken_off_once_a_signal_ends_its_start_and_any_other_goes_on() -> None:
    """As absl's handler does: SIGALRM aborts a few seconds after the signal that it has handed on."""
    limit = signal.setitimer(signal.ITIMER_REAL, 200)  # of pytest
    try:
        with pytest.raises(Stopped), Interrupts(), keep_handlers():
            signal.setitimer(signal.ITIMER_REAL, 30)
            os.kill(os.getpid(), signal.SIGTERM)
            threading.Event().wait(5)
        assert 150 < signal.setitimer(signal.ITIMER_REAL, 0)[0] < 200
        with keep_handlers():
            signal.setitimer(signal.ITIMER_REAL, 30)
        assert signal.getitimer(signal.ITIMER_REAL)[0] == 0
    finally:
        signal.setitimer(signal.ITIMER_REAL, *limit)


def test_a_signal_is_noticed_in_every_wait_and_what_is_done_first_is_given() -> None:
    with Interrupts() as interrupts:
        interrupts.defer()
        assert interrupts.beside(lambda: 7) == 7
        with pytest.raises(KeyError, match="its own"):
            interrupts.beside(lambda: {}["its own"])
        interrupts.pause(0.01)
        never = threading.Event()
        for wait in (lambda: interrupts.beside(lambda: never.wait(30)), lambda: interrupts.pause(30)):
            interrupts.requested = None
            threading.Timer(0.1, os.kill, (os.getpid(), signal.SIGTERM)).start()
            began = time.monotonic()
            with pytest.raises(Asked) as asked:
                wait()
            assert time.monotonic() - began < 10 and asked.value.signal == signal.SIGTERM
        done: list[int] = []
        with pytest.raises(Asked):
            interrupts.beside(lambda: done.append(1))  # nothing more begins
        never.set()
        assert done == []
