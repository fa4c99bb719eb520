"""An interactive shell on a pseudo terminal, as a user has it."""

import fcntl
import os
import pty
import select
import signal
import struct
import termios
import time

PROMPT = "@prompt@ "
TIMEOUT = 20


class Terminal:
    """`bash -i` with job control on a terminal of its own. What it writes is matched in order."""

    def __init__(self, cwd, env):
        self.seen = ""
        self.pid, self.fd = pty.fork()
        if self.pid == 0:
            try:
                os.chdir(cwd)
                for each in (signal.SIGHUP, signal.SIGINT, signal.SIGQUIT):
                    signal.signal(each, signal.SIG_DFL)  # if the tests run in the background, or by nohup
                # Not in the typed text: otherwise the echo of a command would look like the prompt.
                environment = {**env, "PS1": PROMPT, "HISTFILE": "", "TERM": "dumb"}
                arguments = ["bash", "--norc", "--noprofile", "--noediting", "-i"]
                os.execvpe("bash", arguments, environment)
            finally:
                os._exit(127)
        self.expect(PROMPT)

    def expect(self, text):
        """Read until `text` has come; return what came before it."""
        deadline = time.monotonic() + TIMEOUT
        while text not in self.seen:
            ready, _, _ = select.select([self.fd], [], [], max(0, deadline - time.monotonic()))
            assert ready, f"{text!r} did not come; got {self.seen!r}"
            try:
                data = os.read(self.fd, 65536)
            except OSError:
                data = b""
            assert data, f"the terminal ended before {text!r}; got {self.seen!r}"
            self.seen += data.decode(errors="replace").replace("\r\n", "\n")
        before, _, self.seen = self.seen.partition(text)
        return before

    def type(self, text):
        os.write(self.fd, text.encode())

    def run(self, command):
        """Type a command line and return what it wrote (with its echo)."""
        self.type(command + "\n")
        return self.expect(PROMPT)

    def status(self):
        """$? of the last command."""
        self.type("echo status=$(($?))=\n")
        self.expect("\nstatus=")
        status = int(self.expect("="))
        self.expect(PROMPT)
        return status

    def foreground(self):
        """fg, and wait until the job has the terminal."""
        shell = os.tcgetpgrp(self.fd)
        self.type("fg\n")
        self.expect("fg\n")
        self.expect("\n")  # which job that is
        deadline = time.monotonic() + TIMEOUT
        while os.tcgetpgrp(self.fd) == shell:
            assert time.monotonic() < deadline, "the shell keeps the terminal"

    def resize(self, rows, columns):
        fcntl.ioctl(self.fd, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))

    def close(self):
        """Hang up: the kernel tells the shell, and that its jobs. May be called twice."""
        if self.fd < 0:
            return
        os.close(self.fd)
        self.fd = -1
        for _ in range(200):
            if os.waitpid(self.pid, os.WNOHANG)[0]:
                return
            time.sleep(0.01)
        os.kill(self.pid, signal.SIGKILL)
        os.waitpid(self.pid, 0)
