"""A SLURM cluster of two nodes on this machine, for the tests: real daemons, fake GPUs, loopback only.

python tests/slurm/cluster.py install      Debian's packages, where they are missing and may be installed
python tests/slurm/cluster.py up DIR       start; prints the environment to use it with
python tests/slurm/cluster.py down DIR     stop

Everything lies in DIR, /etc is not touched: the clients find the cluster through SLURM_CONF, and a shim of
srun hands it on, since Snakemake's plugin takes every SLURM_* variable away before it calls srun.
"""

import getpass
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

PACKAGES = "slurmctld slurmd slurm-client munge slurmdbd mariadb-server".split()
PROGRAMS = "slurmctld slurmd slurmdbd sbatch munged mariadbd".split()
STOP_ORDER = ["slurmd-n1", "slurmd-n2", "slurmctld", "slurmdbd", "mariadbd", "munged"]
SBIN = os.pathsep.join(["/usr/sbin", "/sbin"])

SLURM_CONF = """\
ClusterName=lab
SlurmctldHost=localhost(127.0.0.1)
SlurmctldPort={ctld}
AuthType=auth/munge
AuthInfo=socket={run}/munge.sock
CommunicationParameters=NoCtldInAddrAny,NoInAddrAny
SlurmUser={user}
SlurmdUser={user}
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool/%n
SlurmctldPidFile={run}/slurmctld.own.pid
SlurmdPidFile={run}/slurmd-%n.own.pid
SlurmctldLogFile={folder}/log/slurmctld.log
SlurmdLogFile={folder}/log/slurmd-%n.log
MailProg=/bin/true
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/linux
JobAcctGatherFrequency=task=1
JobAcctGatherParams=OverMemoryKill
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU_Memory
MpiDefault=none
ReturnToService=2
MinJobAge=300
KillWait=5
SlurmctldTimeout=10
SlurmdTimeout=60
SlurmdParameters=config_overrides
SchedulerParameters=sched_min_interval=0,bf_interval=5
AccountingStorageType=accounting_storage/slurmdbd
AccountingStorageHost=localhost
AccountingStoragePort={dbd}
AccountingStoragePass={run}/munge.sock
AccountingStoreFlags=job_comment
AccountingStorageTRES=gres/gpu
JobCompType=jobcomp/none
GresTypes=gpu
NodeName=n1 NodeHostname=localhost NodeAddr=127.0.0.1 Port={n1} CPUs=8 RealMemory=64000 Weight=9 \
Gres=gpu:fake:6 State=UNKNOWN
NodeName=n2 NodeHostname=localhost NodeAddr=127.0.0.1 Port={n2} CPUs=8 RealMemory=64000 Weight=1 \
Gres=gpu:fake:6 State=UNKNOWN
PartitionName=gpu Nodes=n1,n2 Default=YES MaxTime=600 DefMemPerCPU=500 State=UP
PartitionName=first Nodes=n1 MaxTime=600 DefMemPerCPU=500 State=UP
"""

GRES_CONF = """\
NodeName=n1,n2 Name=gpu Type=fake File=/dev/null,/dev/zero,/dev/full,/dev/random,/dev/urandom,/dev/ptmx
"""

SLURMDBD_CONF = """\
AuthType=auth/munge
AuthInfo=socket={run}/munge.sock
DbdHost=localhost
DbdAddr=127.0.0.1
DbdPort={dbd}
SlurmUser={user}
PidFile={run}/slurmdbd.own.pid
LogFile={folder}/log/slurmdbd.log
StorageType=accounting_storage/mysql
StorageHost=127.0.0.1
StoragePort={sql}
StorageUser=slurm
StoragePass=slurm
StorageLoc=slurm_acct_db
CommunicationParameters=NoInAddrAny
"""

GRANTS = "create database if not exists slurm_acct_db;" + "".join(
    f"create user if not exists slurm@'{host}' identified by 'slurm';"
    f"grant all on slurm_acct_db.* to slurm@'{host}';"
    for host in ("localhost", "127.0.0.1")
)


def find(program: str) -> str | None:
    return shutil.which(program, path=os.environ["PATH"] + os.pathsep + SBIN)


def missing() -> list[str]:
    return [program for program in PROGRAMS if not find(program)]


def unavailable() -> str | None:
    """Why no cluster can be started here, or None."""
    if os.geteuid() != 0:
        return "the daemons of the test cluster need root"
    if missing():
        return f"{', '.join(missing())} not found; python tests/slurm/cluster.py install"
    return None


def install() -> str | None:
    """Install what is missing from Debian's packages. Returns why that cannot be done, or None."""
    if not missing():
        return None
    if not find("apt-get"):
        return "no apt-get here"
    root = [] if os.geteuid() == 0 else ["sudo", "-n"]
    if root and (not find("sudo") or subprocess.run(["sudo", "-n", "true"], capture_output=True).returncode):
        return "neither root nor sudo without a password"
    environment = os.environ | {"DEBIAN_FRONTEND": "noninteractive"}
    for step in (["update"], ["install", "-y", "--no-install-recommends", *PACKAGES]):
        command = [*root, "apt-get", "-qq", *step]
        try:
            done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
        except subprocess.TimeoutExpired:
            return f"{' '.join(command)} took more than five minutes"
        if done.returncode:
            return f"{' '.join(command)} failed: {done.stderr.strip()[-300:]}"
    return None


def free_ports(count: int) -> list[int]:
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [s.getsockname()[1] for s in sockets]
    for s in sockets:
        s.close()
    return ports


class Cluster:
    """The daemons of one folder. Every wait has a limit; every process is stopped by its own pid."""

    def __init__(self, folder: Path, accounting: bool = True):
        self.accounting = accounting
        self.folder = Path(folder).resolve()
        self.run, self.etc, self.log = (self.folder / name for name in ("run", "etc", "log"))

    def environment(self) -> dict[str, str]:
        """What a process needs to use this cluster."""
        path = os.pathsep.join([str(self.folder / "bin"), os.environ["PATH"], SBIN])
        conf = str(self.etc / "slurm.conf")
        return {"SLURM_CONF": conf, "LAB_SLURM_CONF": conf, "PATH": path}

    def call(self, *command, timeout=20, check=True) -> str:
        """Run a client, such as squeue, on this cluster and return what it prints."""
        done = subprocess.run(
            list(map(str, command)),
            env=os.environ | self.environment(),
            capture_output=True,
            text=True,
            timeout=timeout,
        )
        if check and done.returncode:
            raise RuntimeError(f"{' '.join(map(str, command))}: {done.stderr.strip()}")
        return done.stdout

    def wait(self, what: str, test, seconds: float = 30) -> None:
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            try:
                if test():
                    return
            except (RuntimeError, subprocess.TimeoutExpired):
                pass
            time.sleep(0.1)
        raise RuntimeError(f"the test cluster: {what} after {seconds} s; see {self.log}")

    def write_configuration(self) -> None:
        for name in ("run", "etc", "log", "state", "spool", "bin"):
            (self.folder / name).mkdir(parents=True, exist_ok=True)
        self.folder.chmod(0o755)
        self.run.chmod(0o1777)  # the database runs as another user
        ports = dict(zip(("ctld", "dbd", "sql", "n1", "n2"), free_ports(5), strict=True))
        values = {"folder": self.folder, "run": self.run, "user": getpass.getuser()} | ports
        (self.run / "sql.port").write_text(str(ports["sql"]))
        lines = SLURM_CONF.format(**values).splitlines(keepends=True)
        if not self.accounting:
            lines = [line for line in lines if not line.startswith("Accounting")]
            lines.append("AccountingStorageType=accounting_storage/none\n")
        (self.etc / "slurm.conf").write_text("".join(lines))
        (self.etc / "gres.conf").write_text(GRES_CONF)
        (self.etc / "slurmdbd.conf").write_text(SLURMDBD_CONF.format(**values))
        (self.etc / "slurmdbd.conf").chmod(0o600)
        (self.etc / "munge.key").write_bytes(os.urandom(128))
        (self.etc / "munge.key").chmod(0o400)
        shim = self.folder / "bin" / "srun"
        shim.write_text(f'#!/bin/sh\nSLURM_CONF="$LAB_SLURM_CONF" exec {find("srun")} "$@"\n')
        shim.chmod(0o755)

    def start(self, name: str, *command) -> None:
        with open(self.log / f"{name}.out", "ab") as log:
            process = subprocess.Popen(
                [find(command[0]), *map(str, command[1:])],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=os.environ | self.environment(),
                cwd=self.folder,
                start_new_session=True,
            )
        (self.run / f"{name}.pid").write_text(str(process.pid))

    def stop(self, name: str, seconds: float = 15) -> None:
        file = self.run / f"{name}.pid"
        if not file.is_file():
            return
        pid = int(file.read_text())
        for end, number in ((seconds, signal.SIGTERM), (5, signal.SIGKILL)):
            try:
                os.kill(pid, number)
                self.wait(f"{name} did not stop", lambda: gone(pid), end)
                break
            except ProcessLookupError:
                break
            except RuntimeError:
                continue
        file.unlink()

    def start_controller(self) -> None:
        self.start("slurmctld", "slurmctld", "-D", "-f", self.etc / "slurm.conf")
        self.wait("slurmctld does not answer", lambda: "is UP" in self.call("scontrol", "ping"))

    def start_database(self) -> None:
        data, socket_path, port = self.folder / "sql", self.run / "sql.sock", self.run / "sql.port"
        user = ["--user=mysql"] if os.geteuid() == 0 else []
        if not data.is_dir():
            data.mkdir()
            if user:
                shutil.chown(data, "mysql")
            self.call(
                *("mariadb-install-db", "--no-defaults", *user, f"--datadir={data}", "--skip-test-db"),
                "--auth-root-authentication-method=socket",
                timeout=60,
            )
        self.start(
            *("mariadbd", "mariadbd", "--no-defaults", *user, f"--datadir={data}"),
            *(f"--socket={socket_path}", f"--pid-file={self.run}/sql.own.pid", "--bind-address=127.0.0.1"),
            *(f"--port={port.read_text()}", "--innodb-buffer-pool-size=64M"),
            *("--innodb-lock-wait-timeout=900", "--innodb-flush-log-at-trx-commit=2"),
        )
        client = ("mariadb", "--no-defaults", f"--socket={socket_path}", "-e")
        self.wait("mariadbd does not answer", lambda: not self.call(*client, ""))
        self.call(*client, GRANTS)

    def up(self) -> None:
        self.write_configuration()
        self.start(
            *("munged", "munged", "--foreground", "--force", f"--key-file={self.etc}/munge.key"),
            *(f"--socket={self.run}/munge.sock", f"--pid-file={self.run}/munged.own.pid"),
            *(f"--log-file={self.log}/munged.log", f"--seed-file={self.run}/munge.seed", "--num-threads=2"),
        )
        self.wait("munged does not answer", lambda: self.call("munge", "-n", "-S", self.run / "munge.sock"))
        if self.accounting:
            self.start_accounting()
        self.start_controller()
        for node in ("n1", "n2"):
            self.start(f"slurmd-{node}", "slurmd", "-D", "-N", node, "-f", self.etc / "slurm.conf")
        self.wait("the nodes are not idle", lambda: self.nodes("idle") == {"n1", "n2"})

    def start_accounting(self) -> None:
        self.start_database()
        self.start("slurmdbd", "slurmdbd", "-D")
        self.wait("slurmdbd does not answer", lambda: self.call("sacctmgr", "-n", "list", "cluster") or True)
        self.call("sacctmgr", "-i", "add", "cluster", "lab", check=False)
        self.call("sacctmgr", "-i", "add", "account", "distillers", "cluster=lab", check=False)
        user = getpass.getuser()
        self.call("sacctmgr", "-i", "add", "user", user, "account=distillers", "cluster=lab", check=False)

    def nodes(self, state: str) -> set[str]:
        return set(self.call("sinfo", "-h", "-N", "-t", state, "-o", "%N").split())

    def down(self) -> None:
        if (self.run / "slurmctld.pid").is_file():
            try:
                self.call("scancel", "-u", getpass.getuser())
                self.wait("jobs do not end", lambda: not self.call("squeue", "-h"))
            except (RuntimeError, subprocess.TimeoutExpired) as error:
                print(error, file=sys.stderr)
        for name in STOP_ORDER:
            self.stop(name)
        for pid in self.left():
            os.kill(pid, signal.SIGKILL)

    def left(self) -> list[int]:
        """Processes of jobs that outlived their node, known by this cluster's name in their environment."""
        mark, found = f"LAB_SLURM_CONF={self.etc}/slurm.conf".encode(), []
        for folder in Path("/proc").glob("[0-9]*"):
            try:
                variables = (folder / "environ").read_bytes().split(b"\0")
            except OSError:  # ended meanwhile, or another user's
                continue
            if mark in variables and int(folder.name) != os.getpid():
                found.append(int(folder.name))
        return found


def gone(pid: int) -> bool:
    """Has a process ended? A child of ours that has ended is reaped on the way."""
    try:
        if os.waitpid(pid, os.WNOHANG)[0]:
            return True
    except ChildProcessError:
        pass
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    return False


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["install"]:
            reason = install()
            print(f"SLURM cannot be installed here: {reason}" if reason else "SLURM's packages are there")
        case ["up", folder]:
            cluster = Cluster(folder)
            cluster.up()
            print(
                "".join(f"export {key}='{value}'\n" for key, value in cluster.environment().items()), end=""
            )
        case ["down", folder]:
            Cluster(folder).down()
        case _:
            sys.exit(__doc__)
