"""Signals as exceptions: in the main thread, and not where they are ignored."""

import os
import signal
import threading

import pytest

from hpt_trl.signals import ending_on_signals


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_signal_ends_what_is_within(number):
    # Of tests that run under `nohup` one is ignored.
    before = signal.signal(number, signal.SIG_DFL)
    try:
        with pytest.raises(SystemExit) as raised, ending_on_signals():
            os.kill(os.getpid(), number)
            pytest.fail("not ended")
        assert raised.value.code == 128 + number and signal.getsignal(number) == signal.SIG_DFL
    finally:
        signal.signal(number, before)


def test_an_ignored_signal_stays_ignored():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with ending_on_signals():
            os.kill(os.getpid(), signal.SIGHUP)
        assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


def test_another_thread_changes_nothing():
    found = []

    def work() -> None:
        with ending_on_signals():
            found.append(signal.getsignal(signal.SIGTERM))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert found == [signal.getsignal(signal.SIGTERM)]
