"""`voile run` on a terminal: as without voile."""

import fcntl
import os
import shutil

import pytest

from support.overlays import ROOT, voile_missing
from support.terminal import PROMPT, Terminal

RUN = f"{ROOT}/voile run"


@pytest.fixture
def terminal(isolated, scratch):
    if reason := voile_missing():
        pytest.skip(reason)
    if not shutil.which("bash"):
        pytest.skip("no bash")
    tree = scratch / "tree"
    tree.mkdir()
    state = scratch / "state"
    terminal = Terminal(tree, {**os.environ, "VOILE_STATE": str(state)})
    yield terminal
    terminal.close()
    for sandbox in state.iterdir():
        with_lock = os.open(sandbox, os.O_RDONLY)
        fcntl.flock(with_lock, fcntl.LOCK_EX)  # waits until voile and its daemon have ended
        os.close(with_lock)


def test_exit_status_of_the_command(terminal):
    terminal.run(f"{RUN} sh -c 'exit 42'")
    assert terminal.status() == 42


def test_ctrl_c_reaches_the_command_only(terminal):
    trap = 'trap "echo cau""ght; exit 7" INT'
    terminal.type(f"{RUN} sh -c '{trap}; echo rea\"\"dy; while :; do sleep 0.1; done'\n")
    terminal.expect("ready")
    terminal.type("\x03")
    terminal.expect("caught")
    assert "verdict: ok" in terminal.expect(PROMPT)
    assert terminal.status() == 7


def test_ctrl_c_kills(terminal):
    terminal.type(f"{RUN} sh -c 'echo rea\"\"dy; exec sleep 1000'\n")
    terminal.expect("ready")
    terminal.type("\x03")
    terminal.expect("verdict: ok")
    terminal.expect(PROMPT)
    assert terminal.status() == 130


def test_ctrl_backslash(terminal):
    terminal.type(f"{RUN} sh -c 'ulimit -c 0; echo rea\"\"dy; exec sleep 1000'\n")
    terminal.expect("ready")
    terminal.type("\x1c")
    terminal.expect(PROMPT)
    assert terminal.status() == 131


def test_stop_and_continue(terminal):
    terminal.type(f"{RUN} sh -c 'echo rea\"\"dy; exec cat'\n")
    terminal.expect("ready")
    terminal.type("\x1a")
    terminal.expect("Stopped")
    terminal.expect(PROMPT)
    assert terminal.status() == 128 + 20
    assert "Stopped" in terminal.run("jobs")
    terminal.foreground()
    terminal.type("hello\n")
    terminal.expect("hello\nhello\n")  # the terminal's echo, and cat
    terminal.type("\x1a")
    terminal.expect("Stopped")
    terminal.expect(PROMPT)
    terminal.run("bg")
    # It reads, so it is stopped again, by SIGTTIN.
    terminal.run("while ! jobs | grep -q Stopped; do :; done")
    terminal.foreground()
    terminal.type("\x04")
    terminal.expect("verdict: ok")
    terminal.expect(PROMPT)
    assert terminal.status() == 0


def test_command_that_survives_ctrl_z(terminal):
    terminal.type(f'{RUN} sh -c \'trap "" TSTP; echo rea""dy; read line; echo got-$line\'\n')
    terminal.expect("ready")
    terminal.type("\x1a")
    terminal.type("word\n")
    terminal.expect("got-word")
    terminal.expect(PROMPT)
    assert terminal.status() == 0


def test_command_stopped_by_sigstop(terminal):
    terminal.type(f'{RUN} sh -c \'echo rea""dy; kill -STOP $$; echo conti""nued\'\n')
    terminal.expect("ready")
    terminal.expect("Stopped")
    terminal.expect(PROMPT)
    terminal.foreground()
    terminal.expect("continued")
    terminal.expect(PROMPT)
    assert terminal.status() == 0


def test_in_a_pipeline(terminal):
    terminal.type(f"{RUN} sh -c 'echo one; echo two' 2>/dev/null | wc -l | tr -d ' ' | sed 's/^/lines=/'\n")
    terminal.expect("lines=2\n")


def test_sigterm_is_passed_on(terminal):
    terminal.run(f"{RUN} sleep 1000 & voile=$!")
    # Only voile's own process, as a supervisor would.
    terminal.run("while ! pgrep -P $voile -x sleep >/dev/null; do :; done; kill -TERM $voile; wait $voile")
    assert terminal.status() == 143


def test_window_size(terminal):
    terminal.resize(24, 80)
    script = (
        "import os, signal\n"
        "signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGWINCH])\n"
        "print('start', *os.get_terminal_size(), flush=True)\n"
        "signal.sigwait([signal.SIGWINCH])\n"
        "print('size', *os.get_terminal_size(), flush=True)\n"
    )
    terminal.run("cat > winch.py <<'END'\n" + script + "END")
    terminal.type(f"{RUN} python3 winch.py\n")
    terminal.expect("start 80 24")
    terminal.resize(50, 132)
    terminal.expect("size 132 50")
    terminal.expect(PROMPT)
    assert terminal.status() == 0


def test_interactive_shell_inside(terminal):
    terminal.type(f"{RUN} bash --norc --noprofile --noediting -i\n")
    terminal.expect(PROMPT)
    terminal.type("sh -c 'echo rea\"\"dy; exec sleep 1000'\n")
    terminal.expect("ready")
    terminal.type("\x1a")
    terminal.expect("Stopped")
    terminal.expect(PROMPT)
    terminal.foreground()
    terminal.type("\x03")
    terminal.expect(PROMPT)
    assert terminal.status() == 130
    terminal.run("echo x > made")
    # The inner shell stops itself; the outer one has the terminal then, and gives it back.
    terminal.run("suspend")
    assert "run bash" in terminal.run("jobs")
    assert "made" not in terminal.run("ls")
    terminal.foreground()
    terminal.expect(PROMPT)
    assert "made\n" in terminal.run("echo; ls")
    terminal.type("exit 5\n")
    terminal.expect("1 added, 0 changed, 0 deleted")
    terminal.expect(PROMPT)
    assert terminal.status() == 5


def test_inner_shell_stopped_from_outside_its_control(terminal):
    terminal.type(f"{RUN} bash --norc --noprofile --noediting -i\n")
    terminal.expect(PROMPT)
    terminal.type("kill -STOP $$\n")
    terminal.expect("Stopped")
    terminal.expect(PROMPT)
    terminal.foreground()
    terminal.type("\n")
    terminal.expect(PROMPT)
    terminal.type("exit 6\n")
    terminal.expect("verdict: ok")
    terminal.expect(PROMPT)
    assert terminal.status() == 6


def test_hang_up(terminal, scratch):
    # A FIFO outside the sandbox tells: opening it waits for the trap.
    os.mkfifo(scratch / "hung-up")
    # The kernel hangs up, and the shell again: the second time nobody reads the FIFO.
    trap = f'trap \\"\\" HUP; echo yes > {scratch}/hung-up; exit'
    terminal.type(f'{RUN} sh -c \'trap "{trap}" HUP; echo rea""dy; while :; do sleep 0.1; done\'\n')
    terminal.expect("ready")
    terminal.close()
    assert (scratch / "hung-up").read_text() == "yes\n"
