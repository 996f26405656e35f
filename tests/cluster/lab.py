"""Real hosts on one machine: network namespaces with addresses, a PID namespace and a home of their own, and sshd.

Addresses, user and paths are those of clusters/on-premises.yaml, so that file is used as it stands. ``laptop`` is
another network's machine, routed to the cluster by a router that belongs to neither. Nothing of the host is changed
but for namespaces, which end with :meth:`Lab.close`. Needs root, and the packages that :func:`missing` names.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import textwrap
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
USER = "study"
HOME = Path("/srv/home/study")  # of the user, on every machine; /srv is a file system of each machine's own
SHARED = Path("/srv/study")  # the cluster's storage: one folder, mounted by head and workers
CLUSTER_FILE = "clusters/on-premises.yaml"
ADDRESSES = {"head": "10.0.0.1", "worker1": "10.0.0.2", "worker2": "10.0.0.3", "laptop": "192.168.7.2"}
_PROGRAMS = {"ip": "iproute2", "sshd": "openssh-server", "ssh-keygen": "openssh-client", "rsync": "rsync",
             "unshare": "util-linux", "nft": "nftables", "nc": "netcat-openbsd"}  # fmt: skip


def missing() -> str:
    """Why there can be no lab here; empty where there can."""
    if os.geteuid() != 0:
        return "needs root for network namespaces"
    path = os.environ["PATH"] + ":/usr/sbin:/sbin"
    lacking = sorted({package for program, package in _PROGRAMS.items() if not shutil.which(program, path=path)})
    return f"needs the packages {', '.join(lacking)}" if lacking else ""


def wait_until(condition: Callable[[], object], seconds: float, what: str) -> float:
    """Seconds until ``condition`` held. Raises AssertionError after ``seconds``."""
    start = time.monotonic()
    while not condition():
        assert time.monotonic() - start < seconds, f"not within {seconds:g} s: {what}"
        time.sleep(0.2)
    return time.monotonic() - start


@dataclass
class Machine:
    """One namespace; ``init`` is the process whose end switches it off."""

    name: str
    address: str
    folder: Path
    namespace: str
    init: subprocess.Popen[bytes]

    @property
    def home(self) -> Path:
        """The user's home, as the host sees it."""
        return self.folder / "home"

    def _argv(self, command: str) -> list[str]:
        (child,) = Path(f"/proc/{self.init.pid}/task/{self.init.pid}/children").read_text().split()
        inside = ["nsenter", "-t", child, "-m", "-p", "-u", "-n", "--", "env", "-i", f"HOME={HOME}", f"USER={USER}",
                  f"LOGNAME={USER}", "LANG=C.UTF-8", "TERM=xterm", f"PATH={_path()}"]  # fmt: skip
        return [*inside, "bash", "-c", f"cd {HOME}; [ -f ~/.study_environment ] && . ~/.study_environment; {command}"]

    def run(self, command: str, *, seconds: float = 120, check: bool = True) -> subprocess.CompletedProcess[str]:
        """Run in this machine as its user would; both outputs in ``stdout``."""
        with tempfile.TemporaryFile("w+") as out:  # not a pipe: ssh's connection to the head outlives `ray up`
            code = subprocess.run(
                self._argv(command), stdout=out, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL, timeout=seconds,
                start_new_session=True, check=False,
            ).returncode  # fmt: skip
            out.seek(0)
            text = out.read()
        assert not check or code == 0, f"{self.name}$ {command}\n{text}"
        return subprocess.CompletedProcess(command, code, text)

    def start(self, command: str, log: Path) -> subprocess.Popen[bytes]:
        """Start in a process group of its own; ``os.killpg`` ends it as a closed lid does."""
        with log.open("wb") as out:
            return subprocess.Popen(
                self._argv(command), stdout=out, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL,
                start_new_session=True,
            )  # fmt: skip

    def processes(self, word: str) -> dict[int, str]:
        """Its processes whose command line has ``word`` in it, the oldest first: the host's number and the line."""
        (child,) = Path(f"/proc/{self.init.pid}/task/{self.init.pid}/children").read_text().split()
        mine, found = os.readlink(f"/proc/{child}/ns/pid"), {}
        for pid in sorted(int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit()):
            with contextlib.suppress(OSError):  # it has ended meanwhile
                line = Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
                if word in line and os.readlink(f"/proc/{pid}/ns/pid") == mine:
                    found[pid] = line
        return found

    def signal(self, word: str, sign: signal.Signals) -> int:
        """Send ``sign`` to each of :meth:`processes`; how many took it."""
        taken = 0
        for pid in self.processes(word):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, sign)
                taken += 1
        return taken

    def cut(self) -> None:
        """Pull the network cable."""
        _ip("-n", self.namespace, "link", "set", "eth0", "down")

    def mend(self) -> None:
        """Plug it in again; with the link, its route was gone."""
        _ip("-n", self.namespace, "link", "set", "eth0", "up")
        _ip("-n", self.namespace, "route", "replace", "default", "via", _gateway(self.name))

    def kill(self) -> None:
        """Switch off: every process of the machine is gone at once, and its cable is out."""
        self.cut()
        self.init.send_signal(signal.SIGKILL)
        self.init.wait()


class Lab:
    """Machines by name, started in ``folder``; ``shared`` is the cluster's storage as the host sees it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.shared = folder / "shared"
        self.shared.mkdir(parents=True)
        self._prefix = f"lab{os.getpid()}"
        self._router = f"{self._prefix}-router"
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", folder / "key"], check=True)
        _ip("netns", "add", self._router)
        inside = ["netns", "exec", self._router]
        for bridge, address in (("cluster", "10.0.0.254/24"), ("outside", "192.168.7.1/24")):
            _ip("-n", self._router, "link", "add", bridge, "type", "bridge")
            _ip("-n", self._router, "addr", "add", address, "dev", bridge)
            _ip("-n", self._router, "link", "set", bridge, "up")
        _ip(*inside, "sysctl", "-qw", "net.ipv4.ip_forward=1")
        self.machines: dict[str, Machine] = {}
        try:
            for name in ADDRESSES:
                self.power_on(name)
        except BaseException:
            self.close()
            raise

    def __getitem__(self, name: str) -> Machine:
        return self.machines[name]

    def power_on(self, name: str) -> Machine:
        """Start a machine; one that was on before finds its disk again."""
        namespace, folder = f"{self._prefix}-{name}", self.folder / name
        link = f"{name[:4]}{name[-1]}"
        # Of a machine that was on before, these may be there still: the kernel takes its time with namespaces.
        for old in (["-n", self._router, "link", "del", link], ["netns", "del", namespace]):
            subprocess.run(["ip", *old], capture_output=True, check=False)
        _ip("netns", "add", namespace)
        _ip("-n", self._router, "link", "add", link, "type", "veth", "peer", "name", "eth0", "netns", namespace)
        _ip("-n", self._router, "link", "set", link, "master", "outside" if name == "laptop" else "cluster", "up")
        _ip("-n", namespace, "addr", "add", f"{ADDRESSES[name]}/24", "dev", "eth0")
        for device in ("lo", "eth0"):
            _ip("-n", namespace, "link", "set", device, "up")
        _ip("-n", namespace, "route", "add", "default", "via", _gateway(name))
        if not folder.exists():
            self._furnish(name, folder)
        (folder / "ready").unlink(missing_ok=True)
        init = subprocess.Popen(
            ["ip", "netns", "exec", namespace, "unshare", "-m", "-p", "-u", "-f", "--mount-proc", "--kill-child=KILL",
             "bash", folder / "init"],
            stdin=subprocess.DEVNULL, stdout=(folder / "console").open("ab"), stderr=subprocess.STDOUT,
        )  # fmt: skip
        wait_until(lambda: (folder / "ready").exists() or init.poll() is not None, 60, f"{name} is on")
        assert init.poll() is None, (folder / "console").read_text()
        self.machines[name] = Machine(name, ADDRESSES[name], folder, namespace, init)
        return self.machines[name]

    def _furnish(self, name: str, folder: Path) -> None:
        """The machine's disk: home with key, token and checkout; the installed environment; what it does when on."""
        home, tmp = folder / "home", folder / "tmp"
        for part in (home / ".ssh", tmp, home / "study"):
            part.mkdir(parents=True)
        (home / ".bash_profile").write_text(". ~/.bashrc\n")
        (home / ".bashrc").write_text("")
        if name == "laptop":
            shutil.copy(self.folder / "key", home / ".ssh" / "id_ed25519")
            listed = ["git", "ls-files", "-co", "--exclude-standard", "-z"]
            names = subprocess.run(listed, cwd=ROOT, capture_output=True, text=True, check=True).stdout
            for file in filter(None, names.split("\0")):
                if (ROOT / file).is_file():
                    (home / "study" / file).parent.mkdir(parents=True, exist_ok=True)
                    shutil.copy2(ROOT / file, home / "study" / file)
            (home / "study" / ".venv").symlink_to(sys.prefix)
        else:
            shutil.copy(self.folder / "key.pub", home / ".ssh" / "authorized_keys")
            environment = home / "study" / ".venv"  # the set-up command finds the environment installed
            environment.mkdir()
            for part in ("bin", "lib", "pyvenv.cfg"):
                (environment / part).symlink_to(Path(sys.prefix) / part)
            shutil.copy(ROOT / "constraints.txt", environment / "installed")
        # The user is first: with root's number they are who `whoami` and ssh take them for.
        users = (f"{USER}:0:0::{HOME}:/bin/bash", "root:0:0:::/bin/false", "sshd:101:65534::/run/sshd:/bin/false")
        (folder / "passwd").write_text("".join(line.replace(":", ":x:", 1) + "\n" for line in users))
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", folder / "host_key"], check=True)
        (folder / "sshd_config").write_text(
            f"HostKey {folder}/host_key\nUsePAM no\nStrictModes no\nPermitRootLogin yes\nPasswordAuthentication no\n"
            f"MaxStartups 100\nMaxSessions 100\nPidFile none\n"
        )
        # /tmp is the machine's own, with what the host keeps below /tmp shown again.
        kept = [path for path in {ROOT, Path(sys.prefix).resolve(), Path(sys.base_prefix), folder} if _below_tmp(path)]
        for path in kept:
            (tmp / path.relative_to("/tmp")).mkdir(parents=True, exist_ok=True)
        (folder / "init").write_text(
            textwrap.dedent(f"""\
                set -eu
                hostname {name}
                mount --make-rprivate /
                mount -t tmpfs none /srv
                mkdir -p {HOME} {SHARED}
                mount --bind {home} {HOME}
                {"" if name == "laptop" else f"mount --bind {self.shared} {SHARED}"}
                mount --bind {folder}/passwd /etc/passwd
                mount -t tmpfs none /run
                mkdir -p /run/sshd
                mount -t tmpfs none /dev/shm
                {" ; ".join(f"mount --bind {p} {tmp / p.relative_to('/tmp')}" for p in kept)}
                mount --rbind {tmp} /tmp
                touch {folder}/ready
                exec {"sleep infinity" if name == "laptop" else f"/usr/sbin/sshd -D -f {folder}/sshd_config"}
                """)
        )

    def bring_up(self) -> None:
        """Type `ray up`, on the laptop; also where the cluster was up before."""
        self["laptop"].run(f"cd ~/study && ray up -y {CLUSTER_FILE}", seconds=300)

    def close(self) -> None:
        for machine in self.machines.values():
            machine.init.kill()
            machine.init.wait()
        for name in (*ADDRESSES, "router"):
            subprocess.run(["ip", "netns", "del", f"{self._prefix}-{name}"], capture_output=True, check=False)


@contextlib.contextmanager
def cluster(folder: Path, specs: Mapping[str, str]) -> Iterator[Lab]:
    """A lab whose cluster is up, with ``specs`` (a file's name and text) in the laptop's checkout.

    One at a time on a machine, also where tests run in several processes: two would starve each other.
    """
    with (Path(tempfile.gettempdir()) / "study-lab.lock").open("w") as turn:
        fcntl.flock(turn, fcntl.LOCK_EX)
        yield from _alone(folder, specs)


def _alone(folder: Path, specs: Mapping[str, str]) -> Iterator[Lab]:
    lab = Lab(folder)
    try:
        laptop = lab["laptop"]
        for name, text in specs.items():
            (laptop.home / "study" / name).write_text(text)
        laptop.run("ray get-auth-token --generate && chmod 600 ~/.ray/auth_token")
        lab.bring_up()
        yield lab
    finally:
        lab.close()


def _path() -> str:
    return f"{sys.prefix}/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


def _gateway(name: str) -> str:
    return "192.168.7.1" if name == "laptop" else "10.0.0.254"


def _below_tmp(path: Path) -> bool:
    return Path("/tmp") in path.parents


def _ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True)
