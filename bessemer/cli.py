"""The command line: runs the flows in the foreground, and shows what is in the store.

It imports no flow: `flows/__main__.py` gives it their bodies. The commands that look after a root are in `bessemer/root_commands.py`.
"""

import argparse
import contextlib
import json
import logging
import os
import signal
import sys
import time
import warnings
from collections.abc import Callable, Sequence
from typing import Any

from bessemer.config import Asked, Config, ask, parse_set
from bessemer.config_commands import add_config_commands
from bessemer.console import ConsoleJournal
from bessemer.live_figures import live_figures
from bessemer.root_commands import add_commands
from bessemer.summary import Summary
from contract.environment_variables import prepare_environment
from contract.errors import ComeAgain, ConfigError, InputError, PipelineError, exit_code_of, said
from engine.stage import Engine, Planned
from engine.stage_lines import HEAD, duration, row, size

Body = Callable[[Any, Config], dict[str, Any]]
"""A flow's body: (runner, config) -> artifacts by role."""


def main(flows: Sequence[str], body_of: Callable[[str], Body], argv: Sequence[str] | None = None) -> int:
    """Run one command; returns its exit code. `body_of` gives the body of a flow by its name, one of `flows`."""
    arguments = _parser(flows).parse_args(argv, argparse.Namespace(body_of=body_of))
    warnings.filterwarnings("ignore")
    logging.getLogger().addHandler(logging.NullHandler())
    try:
        if arguments.call is not _doctor:  # it says itself what is missing
            prepare_environment()
        code = int(arguments.call(arguments))
        sys.stdout.flush()
        return code
    except PipelineError as error:
        print(f"bessemer: {said(error)}", file=sys.stderr)
        return error.exit_code
    except OSError as error:
        return _ended_by(error)
    except KeyboardInterrupt:
        with contextlib.suppress(OSError):  # the terminal may be closed
            print("bessemer: stopped; the same command goes on from here", file=sys.stderr, flush=True)
            sys.stdout.flush()
        os._exit(130)  # all is closed by now; Ray's threads have crashed interpreters that ended in order


def _ended_by(error: OSError) -> int:
    """Print one sentence for an error of a disk, a path or stdout, or nothing if stdout is closed (`| head`); returns the exit code."""
    if not isinstance(error, BrokenPipeError):
        print(f"bessemer: {said(error)}", file=sys.stderr)
    try:
        sys.stdout.flush()
    except OSError:  # else the interpreter flushes again at its end
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return exit_code_of(error)


def _parser(flows: Sequence[str]) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="bessemer", description="From raw text to a trained language model.")
    parser.add_argument("--version", action="store_true", help="print the versions of Bessemer, Python and torch, and the commit")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    def command(name: str, call: Callable[[argparse.Namespace], int], text: str) -> argparse.ArgumentParser:
        sub = commands.add_parser(name, help=text, description=text)
        sub.set_defaults(call=call)
        return sub

    def configured(sub: argparse.ArgumentParser) -> argparse.ArgumentParser:
        sub.add_argument("--preset", help="a file of deployments/presets (default: laptop)")
        sub.add_argument("--config", metavar="FILE", help="your own file: `base: PRESET` and what differs; a path or s3://BUCKET/my.yaml")
        sub.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="override a setting, dotted; the value is YAML")
        return sub

    run = configured(command("run", _run, "Run a flow here, with no server."))
    run.add_argument("flow", choices=flows)
    run.add_argument("--until", metavar="STAGE", help="stop after this stage")
    run.add_argument("--from", dest="start", metavar="STAGE", help="make this stage and all after it again")
    run.add_argument("--force", action="append", default=[], metavar="STAGE", help="make this stage again")
    plan = configured(command("plan", _plan, "Say which stages would run and why, without running them."))
    plan.add_argument("flow", choices=flows, nargs="?", default="pretrain")
    configured(command("status", _status, "List the stages of a preset with their state, size and time."))
    show = configured(command("show", _show, "Print an artifact's manifest, ledger and figures."))
    show.add_argument("stage")
    show.add_argument("--json", action="store_true", help="the whole manifest as JSON")
    add_commands(command, configured)
    add_config_commands(command, configured)
    for name, text in (("up", "Start the Prefect server and a worker."), ("down", "Stop them."), ("services", "Say what runs.")):
        command(name, _service, text).set_defaults(service=name)
    configured(command("doctor", _doctor, "Check this machine and what a configuration needs of it; a line each, with the remedy."))
    notify = command("notify", _notify, "Have the Prefect server post a line to a webhook when a run fails or crashes.")
    notify.add_argument("url", nargs="?", metavar="URL", help="Slack, Mattermost, or anything that takes a POST of JSON")
    notify.add_argument("--off", action="store_true", help="stop it")
    return parser


def _asked(arguments: argparse.Namespace) -> Asked:
    return ask(arguments.preset, arguments.config, dict(parse_set(text) for text in arguments.set))


def _noted(asked: Asked) -> Asked:
    for note in asked.notes():
        print(f"bessemer: {note}", file=sys.stderr)
    return asked


def _engine(asked: Asked, journal: Any, force: Callable[[str], bool] = lambda stage: False) -> Engine:
    config = asked.config
    config.refuse_missing_plug_ins()
    return Engine(config.store(), config, config.run, journal, asked.scope, force, asked.to_show())


def _plans(arguments: argparse.Namespace, flow: str = "pretrain") -> list[Planned]:
    from engine.runner import plan

    return plan(_engine(_asked(arguments), ConsoleJournal()), arguments.body_of(flow))


def _run(arguments: argparse.Namespace) -> int:
    from bessemer.preflight import refuse_what_would_fail_later
    from engine.parts import stop_ray
    from engine.recording_journal import RecordingJournal
    from engine.runner import PlainRunner, Stopped
    from store.run_records import recorded

    asked, started = _noted(_asked(arguments)), time.monotonic()
    config = asked.config
    _stop_once_on_sigterm()
    if signal.getsignal(signal.SIGHUP) is signal.SIG_DFL:  # under nohup it is ignored
        signal.signal(signal.SIGHUP, signal.default_int_handler)  # a terminal that closes acts like Ctrl-C
    if arguments.flow == "pretrain" and config.run_on.pools():  # no error: the presets for GPUs set it
        print("bessemer: run_on is for runs under Prefect and has no effect here: every stage runs on this machine", file=sys.stderr)
    config.store().probe()
    refuse_what_would_fail_later(config, arguments.flow)
    names = _stage_names(arguments, [arguments.until, arguments.start, *arguments.force])
    forced = {*arguments.force, *(names[names.index(arguments.start) :] if arguments.start else [])}
    try:
        with recorded(config.store(), arguments.flow, asked.preset, asked.overrides, asked.to_record()) as record:
            journal = RecordingJournal(live_figures(ConsoleJournal(), record), record)
            engine = _engine(asked, journal, forced.__contains__)
            try:
                results = arguments.body_of(arguments.flow)(PlainRunner(engine, arguments.until), config)
            except Stopped:
                print(f"stopped after {arguments.until}, {duration(time.monotonic() - started)}")
                return 0
    finally:
        stop_ray()
    print("\n".join(Summary(results, time.monotonic() - started, journal.artifacts).lines()))
    return 0


def _stop_once_on_sigterm() -> None:
    """On SIGTERM a training child checkpoints first, and its launcher raises ComeAgain. Without a child the process ends at once.

    It does not raise an exception then: an `except Exception` anywhere (an optional import has one) could catch it, and the run would
    go on to its end.
    """
    from contract.child_processes import kill_below
    from engine.launch import ask_to_stop
    from store.run_records import CHECKPOINTED, end_open

    def stop(*_: Any) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # a stop of the process group sends it twice
        if not ask_to_stop():
            os.write(2, b"bessemer: stopped; the same command goes on from here\n")
            signal.signal(signal.SIGALRM, lambda *_: os._exit(ComeAgain.exit_code))
            signal.alarm(8)  # in case the store does not answer
            kill_below()
            end_open(*CHECKPOINTED)
            os._exit(ComeAgain.exit_code)

    signal.signal(signal.SIGTERM, stop)


def _stage_names(arguments: argparse.Namespace, asked: list[str | None]) -> list[str]:
    """The flow's stages in order, if any are asked for by name. Raises ConfigError for a name that is not among them."""
    if not any(asked):
        return []
    names = [planned.stage.name for planned in _plans(arguments, arguments.flow)]
    for name in asked:
        if name is not None and name not in names:
            raise ConfigError(f"{arguments.flow} has no stage {name}; it has {', '.join(names)}")
    return names


def _plan(arguments: argparse.Namespace) -> int:
    asked = _noted(_asked(arguments))
    config = asked.config
    runs, need = 0, 0
    for planned in _plans(arguments, arguments.flow):
        if planned.reuse is not None:
            print(f"{planned.stage.name:<19} cached  {planned.fingerprint[:12]}  {size(planned.reuse.size)}")
            continue
        runs += 1
        before = _last_artifact(asked, planned)
        need += before.size if before else 0
        guess = f"  about {duration(before.seconds)}, {size(before.size)} as last time" if before else ""
        print(f"{planned.stage.name:<19} run     {planned.fingerprint[:12]}  {planned.why}{guess}")
    free = config.store().free_bytes()
    print(
        f"{runs} stages to run" + (f", about {size(need)} of disk as last time" if need else "") + (f", {size(free)} free" if free else "")
    )
    return 0


def _last_artifact(asked: Asked, planned: Planned) -> Any:
    """The artifact that this preset or file used last for the stage, as a guess at time and size."""
    from engine.stage import last_artifact

    return last_artifact(_engine(asked, ConsoleJournal()), planned.stage.name)


def _status(arguments: argparse.Namespace) -> int:
    print(HEAD)
    for planned in _plans(arguments):
        if planned.reuse is not None:
            print(row(planned.reuse, planned.reuse.seconds, "done", size(planned.reuse.size)))
        else:
            print(f"{planned.stage.name:<19}{'':>42}  to run  {planned.fingerprint[:12]}  {planned.why}")
    return 0


def _show(arguments: argparse.Namespace) -> int:
    plans = {planned.stage.name: planned for planned in _plans(arguments)}
    if arguments.stage not in plans:
        raise ConfigError(f"there is no stage {arguments.stage}; there are {', '.join(plans)}")
    artifact = plans[arguments.stage].reuse
    if artifact is None:
        raise InputError(f"{arguments.stage} has no artifact for this configuration: {plans[arguments.stage].why}")
    if arguments.json:
        print(json.dumps(artifact.manifest, indent=1, ensure_ascii=False))
        return 0
    manifest = artifact.manifest
    print(f"{artifact.stage}  version {manifest['version']}  {artifact.fingerprint}\ndigest    {artifact.digest}")
    print(f"made      {time.strftime('%Y-%m-%d %H:%M:%S', time.gmtime(manifest['created']))} UTC in {duration(artifact.seconds)}")
    print(f"place     {artifact.storage.uri}/artifacts/{artifact.stage}/{artifact.fingerprint}")
    for role, source in manifest["inputs"].items():
        print(f"input     {role}: {source['stage']} {source['fingerprint'][:12]}")
    for unit, count in manifest["ledger"].items():
        dropped = "".join(f"\n            {reason}: {n:,}" for reason, n in count["dropped"].items() if n)
        totals = f"in {count['in']:,} + added {count['added']:,} = out {count['out']:,} + dropped {sum(count['dropped'].values()):,}"
        print(f"{unit:<10}{totals} + quarantined {count['quarantined']:,}{dropped}")
    for key, value in artifact.figures.items():
        print(f"figure    {key}: {json.dumps(value, ensure_ascii=False)[:300]}")
    for record in artifact.files.values():
        print(f"file      {record.name}  {size(record.size)}" + (f"  {record.rows:,} rows" if record.rows is not None else ""))
    return 0


def _doctor(arguments: argparse.Namespace) -> int:
    from bessemer import doctor

    return doctor.report(_asked(arguments).config)


def _notify(arguments: argparse.Namespace) -> int:
    from services import automations
    from services.status import running_api

    if arguments.off == bool(arguments.url):
        raise InputError("give the address to post to, or --off")
    api = running_api()
    if arguments.off:
        print("off" if automations.stop_notifying(api) else "was off already")
    else:
        print("failed and crashed runs are posted there" if automations.notify(api, arguments.url) else "was set up already")
    return 0


def _service(arguments: argparse.Namespace) -> int:
    from services.__main__ import main as services

    return services([arguments.service if arguments.service != "services" else "status"])


if __name__ == "__main__":
    sys.exit("bessemer: this file knows no flow; start it by `bessemer` or `python -m flows`")
