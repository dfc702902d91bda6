"""Child processes, with small real ones: ready lines, ends, logs, and the promise that none outlives its parent."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import pytest

import vectorfleet.local.child as child_module
from vectorfleet.local import LocalClusterError
from vectorfleet.local.child import Child, last_message

ROOT = Path(__file__).resolve().parents[3]
READY = "print('ready 127.0.0.1:4321', flush=True)\n"
POLITE = "import signal, sys\nsignal.signal(signal.SIGTERM, lambda *_: sys.exit(0))\n" + READY + "signal.pause()\n"
DEAF = (
    "import signal, threading\nsignal.signal(signal.SIGTERM, signal.SIG_IGN)\n" + READY + "threading.Event().wait()\n"
)


def python(code: str) -> list[str]:
    return [sys.executable, "-c", code]


@pytest.fixture
def child(tmp_path: Path) -> Iterator[Child]:
    with ThreadPoolExecutor(1) as spawner:
        one = Child("node-0", tmp_path / "logs", spawner)
        yield one
        one.kill()


def test_ready_and_stop(child: Child) -> None:
    assert (child.pid, child.exit_code, child.address) == (None, None, "")
    child.start(python(POLITE), os.environ)
    child.wait_ready(20)
    assert child.address == "127.0.0.1:4321"
    assert child.pid is not None
    assert psutil.Process(child.pid).cmdline()[1] == "-c", "the tether has become the program"
    assert os.getsid(child.pid) != os.getsid(0), "Ctrl-C does not reach it"
    with pytest.raises(LocalClusterError, match="runs already"):
        child.start(python(READY), os.environ)
    child.terminate()
    child.wait_end(20)
    assert (child.pid, child.exit_code) == (None, 0)


def test_it_yields_to_others_when_asked_to_also_where_sessions_come_first(child: Child) -> None:
    child.start(python(POLITE), os.environ, niceness=3)
    child.wait_ready(20)
    assert psutil.Process(child.pid).nice() == psutil.Process().nice() + 3
    session = Path(f"/proc/{child.pid}/autogroup")
    if session.exists() and (said := session.read_text()):
        assert said.split()[-2:] == ["nice", "3"]


def test_an_end_before_it_is_ready_shows_the_last_words(child: Child) -> None:
    child.start(python("import sys\nprint('first', file=sys.stderr)\nsys.exit('the port is taken')"), os.environ)
    with pytest.raises(LocalClusterError, match=r"node-0 ended with exit code 1 .*node-0.log\): the port is taken"):
        child.wait_ready(20)


ZAP = '{"level":"panic","msg":"failed to create WAL","error":"no space left on device","stacktrace":"a\\n\\tb.go:4"}'
STACK = "goroutine 1 [running]:\nzap.(*Logger).Panic(0xc0, 0x1)\n\t/tmp/logger.go:227 +0x85\nmain.main()\n\t/m.go:32\n"


@pytest.mark.parametrize(
    ("log", "words"),
    [
        ("", ""),
        ("\n \n", ""),
        ("Traceback (most recent call last):\n  File x\nValueError: f(x)\n\n", "ValueError: f(x)"),
        (f"{ZAP}\npanic: failed to create WAL\n\n{STACK}", "failed to create WAL: no space left on device"),
        (f"panic: out of ports\n\n{STACK}\n{STACK}", "panic: out of ports"),
        (f"{ZAP}\npanic: x\n\n{STACK}" + '{"msg":"port is taken"}\n', "port is taken"),
        ('[1]\n{"other": 1}', '{"other": 1}'),
        (STACK, ""),
    ],
)
def test_the_last_words_are_those_that_tell_something(log: str, words: str) -> None:
    assert last_message(log) == words


def test_one_that_is_never_ready(child: Child) -> None:
    child.start(python(POLITE.replace("ready ", "ready")), os.environ)
    with pytest.raises(LocalClusterError, match="not ready within"):
        child.wait_ready(0.1)


def test_a_program_that_does_not_exist(child: Child) -> None:
    child.start(["/no/such/program"], os.environ)
    with pytest.raises(LocalClusterError, match="No such file"):
        child.wait_ready(20)


def test_one_that_does_not_listen_is_killed_in_the_end(child: Child) -> None:
    child.start(python(DEAF), os.environ)
    child.wait_ready(20)
    child.terminate()
    child.wait_end(0.1)
    assert child.exit_code == -signal.SIGKILL


def test_a_stopped_process_still_hears_of_the_end(child: Child) -> None:
    child.start(python(POLITE), os.environ)
    child.wait_ready(20)
    child.signal(signal.SIGSTOP)
    child.terminate()
    child.wait_end(20)
    assert child.exit_code == 0


def test_kill_and_start_again(child: Child) -> None:
    child.start(python(POLITE), os.environ)
    child.wait_ready(20)
    child.kill()
    child.kill()
    child.signal(signal.SIGTERM)  # nobody is there: nothing happens
    assert child.exit_code == -signal.SIGKILL
    child.start(python(POLITE.replace("4321", "4322")), os.environ)
    child.wait_ready(20)
    assert child.address == "127.0.0.1:4322"


def test_logs_are_kept_and_bounded(child: Child, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(child_module, "_LOG_BYTES_MAX", 5)
    for words in ("one", "three", "four"):
        child.start(python(f"import sys\nsys.stderr.write({words!r})\n{READY}"), os.environ)
        child.wait_ready(20)
        child.wait_end(20)
    assert child.log_path.read_text() == "four"
    assert child.log_path.with_suffix(".log.1").read_text() == "onethree"


def test_it_outlives_the_thread_that_asked_for_it(child: Child) -> None:
    thread = threading.Thread(target=lambda: child.start(python(POLITE), os.environ))
    thread.start()
    thread.join()
    child.wait_ready(20)
    child.terminate()
    child.wait_end(20)
    assert child.exit_code == 0, "SIGTERM ended it, not the end of the thread"


@pytest.mark.parametrize("end", ["os.kill(os.getpid(), signal.SIGKILL)", "sys.exit()", "1 / 0"])
def test_it_dies_with_its_parent(tmp_path: Path, end: str) -> None:
    program = f"""
import os, signal, sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from vectorfleet.local.child import Child
child = Child("node-0", Path({str(tmp_path)!r}), ThreadPoolExecutor(1))
child.start([sys.executable, "-c", {DEAF!r}], os.environ)
child.wait_ready(30)
print(child.pid, flush=True)
{end}
"""
    done = subprocess.run(python(program), capture_output=True, text=True, timeout=60, cwd=ROOT, check=False)
    pid = int(done.stdout)
    try:
        psutil.Process(pid).wait(20)
    except psutil.NoSuchProcess:
        pass
    except psutil.TimeoutExpired:
        os.kill(pid, signal.SIGKILL)
        pytest.fail("it lives on")
