"""Runs a flow's body under Prefect: checks the configuration first, runs the stages as task runs, and ends with a summary."""

import gc
import logging
import signal
import time
from collections.abc import Callable
from typing import Any
from uuid import UUID

import prefect.runtime
from prefect import get_client
from prefect.artifacts import create_markdown_artifact
from prefect.client.schemas.objects import State

from bessemer.config import DEFAULT_PRESET, Config, Preset, ask
from bessemer.live_figures import live_figures
from bessemer.preflight import refuse_what_would_fail_later
from bessemer.summary import Summary
from contract.environment_variables import prepare_environment
from engine.parts import stop_ray
from engine.prefect_runner import PrefectJournal, PrefectRunner, ending_in_a_sentence, stop_on_sigterm
from engine.ranks import MoreMachines
from engine.recording_journal import RecordingJournal
from engine.runner import Runner
from engine.stage import Engine
from flows.borrow_machines import BorrowedMachines
from flows.lend_machine import shared_token
from flows.send_parts import PartSender
from flows.this_run import refuse_other_code
from store.run_records import recorded

log = logging.getLogger("bessemer")


Body = Callable[[Runner, Config], dict[str, Any]]


def in_prefect(flow: str, body: Body, preset: Preset, config: str | None, overrides: dict[str, Any] | None) -> State | None:
    return ending_in_a_sentence(lambda: _run(flow, body, preset, config, overrides or {}))


def _run(flow: str, body: Body, preset: Preset, file: str | None, overrides: dict[str, Any]) -> None:
    refuse_other_code()
    prepare_environment()
    gc.freeze()  # imported objects stay: a scan of them at every collection takes half a second of a run that is all Cached
    log.setLevel(logging.INFO)  # Prefect gives loggers of ours the root's level, WARNING
    started = time.monotonic()
    # The form always sends a preset: its default beside a file says nothing.
    asked = ask(None if file and preset.value == DEFAULT_PRESET else preset.value, file, overrides)
    config = asked.config
    for note in asked.notes():
        log.warning(note)
    config.refuse_missing_plug_ins()
    storage = config.store()
    storage.probe()
    refuse_what_would_fail_later(config, flow, config.run_on.pools() if flow == "pretrain" else ())
    before = signal.getsignal(signal.SIGTERM)
    parameters = asked.kept(storage)
    sender = PartSender(parameters, config)
    if flow == "pretrain":
        sender.refuse_what_is_local()
    if asked.file and parameters["config"] != file:
        _go_on_with(parameters)
    stop_on_sigterm(on_cancel=sender.cancel)
    MoreMachines.gather = BorrowedMachines(sender)
    if config.run.nodes > 1 and config.run.ray_address is None:
        MoreMachines.token = shared_token(str(prefect.runtime.flow_run.id))
    try:
        with recorded(storage, flow, asked.preset, overrides, asked.to_record()) as record:
            journal = RecordingJournal(live_figures(PrefectJournal(), record), record)
            engine = Engine(storage, config, config.run, journal, asked.scope, asked=asked.to_show())
            made = body(PrefectRunner(engine, sender=sender.for_part), config)
    finally:
        stop_ray()
        signal.signal(signal.SIGTERM, before)
    summary = Summary(made, time.monotonic() - started, journal.artifacts)
    log.info("\n".join(summary.lines()))
    title = f"{flow}, {asked.title}" + (f": {summary.title}" if summary.title else "")
    create_markdown_artifact(summary.markdown(), key=f"{flow}-summary", description=title)


def _go_on_with(parameters: dict[str, Any]) -> None:
    """Make a Retry of this run, on any machine, read the copy of the file that it begins with: the file may be edited meanwhile."""
    with get_client(sync_client=True) as client:
        client.update_flow_run(UUID(str(prefect.runtime.flow_run.id)), parameters=parameters)
    log.info(f"config  {parameters['config']}")
