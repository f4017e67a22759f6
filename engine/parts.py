"""Maps a stage's work over its parts with Ray Data; each part is sealed when it is done. Ray's other user: ranks_on_ray.py.

Ray starts with the first stage that has more than one part, at `ray_address` if one is set, and stops before training.
Order, names and content do not depend on it: a part's work writes files of fixed names, and results return in plan order.
"""

import contextlib
import logging
import os
import queue
import secrets
import sys
import threading
import time
import traceback
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import pyarrow as pa

from contract.config import RunOptions
from contract.errors import ConfigError, InputError, IntegrityError, PipelineError, StageFailed, said
from contract.own_folders import temporary_folder
from engine.ranks import PASSWORDS, MoreMachines
from engine.stage import Output
from store.artifact import FileRecord
from store.attempt import Attempt

Work = Callable[[dict[str, Any], "PartWriter"], dict[str, Any]]
Sealed = tuple[str, list[FileRecord], dict[str, Any]]

LAST_LINES_S = 3.0
"""How long to wait for the last lines of Ray's workers. They take a tenth of a second, unless a worker died."""
MOST_DEATHS = 3
"""How often a part is given to another worker after its worker died. Ray Data's own default has no limit."""
WORKER_LINES: queue.SimpleQueue[str] = queue.SimpleQueue()
"""Lines that Ray's workers wrote to stderr. Ray delivers them on a thread of its own, but Prefect's log knows a run by the thread of its
stage, so that thread takes them from here."""
MOST_FOLDER_CHARS = 36
"""A socket's path has at most 107 bytes, and Ray puts 70 below its folder."""
END_OF_PART = "bessemer: the end of a part "
"""A worker writes this line to stderr at the end of a part: all its lines about the part came before."""

SESSION: list[str] = []
"""The socket of the Ray that this process has started. Ray's processes are recognised by it."""


@dataclass(frozen=True)
class Part:
    """One unit of work: a name that no other part of the stage has, and the arguments of the work."""

    name: str
    spec: dict[str, Any]


@dataclass
class PartWriter:
    """Where a part's work writes. Files with content=False serve later steps of the stage and are not published."""

    attempt: Attempt
    files: list[FileRecord] = field(default_factory=list)
    inner: set[str] = field(default_factory=set)

    def table(self, name: str, table: pa.Table, content: bool = True) -> None:
        self._add(self.attempt.table(name, table, content), content)

    def bytes(self, name: str, data: bytes, content: bool = True) -> None:
        self._add(self.attempt.bytes(name, data, content), content)

    def _add(self, record: FileRecord, content: bool) -> None:
        self.files.append(record)
        if not content:
            self.inner.add(record.name)


def map_parts(out: Output, work: Work, parts: Sequence[Part], meanwhile: Callable[[], None] | None = None) -> list[dict[str, Any]]:
    """Run `work` for every part that no earlier attempt sealed; return the works' results in the order of `parts`.

    If Ray has to be started, `meanwhile` runs on a thread beside it: the start leaves a core idle for seconds.
    """
    if len({part.name for part in parts}) != len(parts):
        raise IntegrityError(f"{out.attempt.stage}: two parts have one name")
    done = {part.name: out.sealed[part.name] for part in parts if part.name in out.sealed}
    out.adopted += len(done)
    missing = [part for part in parts if part.name not in done]
    for finished, (name, files, result) in enumerate(_map(out, work, missing, meanwhile), start=len(done) + 1):
        done[name] = (files, result)
        out.progress(finished, len(parts), "parts")
    for part in parts:
        for record in done[part.name][0]:
            out.add(record, intermediate=not record.content)
    return [done[part.name][1] for part in parts]


def _map(out: Output, work: Work, parts: Sequence[Part], meanwhile: Callable[[], None] | None) -> Iterator[Sealed]:
    attempt, run = out.attempt, out.run
    workers = run.workers or os.cpu_count() or 1
    if len(parts) <= 1 or (workers == 1 and run.ray_address is None):
        for part in parts:
            yield _sealed_part(attempt, work, part)
        return
    begun = time.monotonic()
    import cloudpickle
    import ray

    if meanwhile is not None and not ray.is_initialized():
        threading.Thread(target=meanwhile, daemon=True).start()
    if start_ray(run):
        out.execution["ray_start_s"] = round(time.monotonic() - begun, 1)
    refuse_unshared(attempt.storage.uri)
    how = cloudpickle.dumps((attempt, work))  # as bytes: Ray Data would retry for ever with an object that a worker cannot load
    log = WorkerLog(out)
    mark = log.mark  # not `log` itself: a worker cannot have it

    def call(row: dict[str, Any]) -> dict[str, Any]:
        attempt, work = cloudpickle.loads(how)
        part = cloudpickle.loads(row["part"])
        try:
            return {"sealed": cloudpickle.dumps(_sealed_part(attempt, work, part))}
        except Exception as error:  # returned as a value: Ray would wrap it beyond recognition
            return {"sealed": cloudpickle.dumps(_portable(error, f"{attempt.stage}: {part.name}"))}
        finally:
            print(mark, file=sys.stderr, flush=True)

    items = [{"part": cloudpickle.dumps(part)} for part in parts]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Ray deprecates max_retries and has nothing in its place (2.60)
        rows = ray.data.from_items(items, override_num_blocks=len(items)).map(call, num_cpus=1, max_retries=MOST_DEATHS)
    try:
        for received, row in enumerate(rows.iter_rows(), start=1):
            sealed = cloudpickle.loads(row["sealed"])
            if isinstance(sealed, Exception):
                log.wait_for(received)
                raise sealed
            yield sealed
            log.pass_on()
        log.wait_for(len(parts))
    except ray.exceptions.RayError as error:
        log.wait_for(len(parts))
        raise StageFailed(
            f"{attempt.stage}: a worker was killed or crashed {MOST_DEATHS + 1} times over: out of memory? "
            "Make room, or lower run.workers, and run it again: it goes on with the parts that are left."
        ) from error


def _portable(error: Exception, where: str) -> Exception:
    """The error in a form that any process can unpickle, with its traceback as a note."""
    ours = error if isinstance(error, PipelineError | OSError) else StageFailed(f"{where} failed with {said(error)}")
    ours.add_note(f"In a worker:\n{traceback.format_exc()}")
    return ours


@dataclass
class WorkerLog:
    """Copies what the workers of a stage write to stderr into the stage's log. Ray brings a worker's lines in order, but late."""

    out: Output
    mark: str = field(default_factory=lambda: END_OF_PART + secrets.token_hex(8))
    ended: int = 0
    """How many parts have ended: no more lines will come from them."""
    logged: set[str] = field(default_factory=set)

    def pass_on(self) -> None:
        """Log the lines that came since the last call; a line that many workers write, once."""
        lines = []
        while not WORKER_LINES.empty():
            lines.append(WORKER_LINES.get())
        self.ended += lines.count(self.mark)
        for line in lines:
            if line.strip() and line not in self.logged and not line.startswith(END_OF_PART):
                self.logged.add(line)
                self.out.warn(f"a worker says: {line}")

    def wait_for(self, parts: int) -> None:
        deadline = time.monotonic() + LAST_LINES_S
        self.pass_on()
        while self.ended < parts and time.monotonic() < deadline:
            time.sleep(0.02)
            self.pass_on()


def _listen_to_workers() -> None:
    from ray._private.ray_logging import global_worker_stdstream_dispatcher as dispatcher

    def hear(output: dict[str, Any]) -> None:
        for line in output["lines"] if output["is_err"] else ():
            WORKER_LINES.put(line)

    for name in ("ray_print_logs", "bessemer"):  # Ray's own handler prints between our lines; ours may be left from an earlier start
        dispatcher.remove_handler(name)
    dispatcher.add_handler("bessemer", hear)


def _sealed_part(attempt: Attempt, work: Work, part: Part) -> Sealed:
    writer = PartWriter(attempt)
    result = work(part.spec, writer)
    attempt.seal(part.name, writer.files, result)
    return part.name, writer.files, result


def start_ray(run: RunOptions, for_others: bool = False) -> bool:
    """Start Ray on this machine, or join `ray_address`; False when it runs already. for_others: other machines will join it."""
    import ray

    if ray.is_initialized():
        return False
    logging.getLogger("ray._private.authentication").setLevel(logging.ERROR)  # it logs a line about its token at every start
    _leave_sigterm_alone()
    own: dict[str, Any] = {} if run.ray_address else {"num_cpus": run.workers or os.cpu_count(), "object_store_memory": run.memory_bytes}
    if not run.ray_address:
        os.environ.setdefault("RAY_TMPDIR", str(_folder()))
        _close(MoreMachines.token if for_others else None)
    try:
        with _passwords_withheld():
            ray.init(
                address=run.ray_address or "local",
                include_dashboard=None if run.ray_address else False,
                logging_level=logging.ERROR,
                configure_logging=False,
                log_to_driver=True,
                **own,
            )
    except ConnectionError as error:
        raise InputError(
            f"no Ray cluster answers at run.ray_address {run.ray_address} ({str(error).splitlines()[0]}). Start one there by "
            "`ray start --head` and have this machine join it, or leave run.ray_address out."
        ) from error
    if not run.ray_address:
        SESSION.append(str(ray.nodes()[0]["RayletSocketName"]))
    _listen_to_workers()
    _schedule_promptly()
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    _ = ray.data.from_items([0])  # Ray Data sets up its loggers with the first data set, and overwrites earlier levels
    for name, level in {"ray": logging.WARNING, "ray.data": logging.WARNING, "ray.data._internal.progress": logging.ERROR}.items():
        logging.getLogger(name).setLevel(level)
    return True


def _folder() -> Path:
    """For Ray's sockets and logs. Its default has a fixed name in TMPDIR and is open to everybody: whoever made it first could put sockets
    of his own into it."""
    try:
        return temporary_folder(MOST_FOLDER_CHARS)
    except OSError as error:
        raise InputError(
            f"no folder for Ray's sockets: {error.filename} cannot be made ({error.strerror}), and their path must be short; "
            f"set RAY_TMPDIR to a folder of yours whose path has at most {MOST_FOLDER_CHARS} characters"
        ) from error


def _close(token: str | None) -> None:
    """Let the Ray that is about to start take nobody's work but ours. With a token it serves other machines, else loopback alone.

    By default Ray listens on all interfaces, and whoever reaches it and has its token runs code as us. It takes 127.0.0.1 for a wish to be
    reachable; that it keeps to loopback is a setting meant for other systems, which each of its processes reads at import (2.60).
    """
    from ray._private import ray_constants
    from ray._raylet import AuthenticationTokenLoader, Config  # type: ignore[attr-defined]

    ray_constants.ENABLE_RAY_CLUSTER = token is not None
    os.environ |= {
        ray_constants.ENABLE_RAY_CLUSTERS_ENV_VAR: "0" if token is None else "1",
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": token or secrets.token_hex(32),
    }
    Config.initialize("")  # Ray is imported by now, and has read its settings
    AuthenticationTokenLoader.instance().reset_cache()


@contextlib.contextmanager
def _passwords_withheld() -> Iterator[None]:
    """Ray's processes inherit the environment of this moment. Prefect's client has read its settings long before."""
    withheld = {name: os.environ.pop(name) for name in PASSWORDS if name in os.environ and not name.startswith("RAY_")}
    try:
        yield
    finally:
        os.environ |= withheld


def _leave_sigterm_alone() -> None:
    """Keep Ray's driver from handling SIGTERM. It does so from its start, in Python and in C++ (2.60): the process would end as if it had
    crashed, and its run's record would stay `running`. The C++ handler has a setting, but Ray reads it only at import."""
    from ray._private import ray_constants, utils

    utils.set_sigterm_handler = lambda _: None
    ray_constants.RAY_DISABLE_FAILURE_SIGNAL_HANDLER = True


def _schedule_promptly() -> None:
    """Shorten two of Ray Data's waits. It is made for jobs of hours; our maps often take a second, and it would idle for half of that.

    A data set begins with no resources, so it runs one task at a time until it asks for them again. And it notices that a task has
    ended only when all have, or after a while. No setting reaches these two (2.60).
    """
    from ray.data._internal.execution import resource_manager, streaming_executor_state

    resource_manager.ResourceManager.GLOBAL_LIMITS_UPDATE_INTERVAL_S = 0.02  # type: ignore[assignment]  # was 1 s
    streaming_executor_state.WAIT_FOR_TASK_COMPLETION_TIMEOUT_S = 0.02  # was 0.1 s


def refuse_unshared(root: str) -> None:
    """Raise ConfigError for a file:// root if the cluster has other machines: they do not see what this one writes there."""
    import ray

    alive = [node for node in ray.nodes() if node["Alive"]]
    own = {node["NodeManagerAddress"] for node in alive if node["NodeID"] == ray.get_runtime_context().get_node_id()}
    far = sorted({node["NodeManagerAddress"] for node in alive} - own)
    if far and root.startswith("file:"):
        raise ConfigError(
            f"the Ray cluster at run.ray_address has other machines ({', '.join(far)}), which do not have storage.root {root}. "
            "Set storage.root to s3://BUCKET/PREFIX, or leave run.ray_address out."
        )


def stop_ray() -> None:
    """Give the machine's memory back before training; the next data stage starts Ray anew."""
    if "ray" in sys.modules:
        import ray

        if ray.is_initialized():
            ray.shutdown()
    while SESSION:
        _end_left(SESSION.pop())


def _end_left(socket: str) -> None:
    """Kill the workers that were still starting when their raylet ended: they would look for it for most of a minute.

    Their command line names the raylet's socket.
    """
    for process in psutil.process_iter(["cmdline"]):
        if any(socket in argument for argument in process.info["cmdline"] or ()):
            with contextlib.suppress(psutil.Error):
                process.kill()
