"""Two automations of the Prefect server: it ends our runs that fell silent, and posts a line to a webhook when one fails or crashes.

Each is found by its name, and written again only when it differs. Both look only at runs of our deployments, which prefect.yaml tags:
on a shared server the runs of others may have no heartbeat, or a slower one.
"""

from typing import Any
from urllib.parse import urlsplit

from contract.errors import InputError, PipelineError
from services.prefect_api import Api

TAG = "bessemer"
HEARTBEAT_S = 30
"""How often flows send a heartbeat (Prefect's minimum). A thread of the flow process sends them, whatever its stage does."""
SILENT_S = 105
"""Three heartbeats may be lost. The server looks every 5 s, so it ends a run within two minutes of its last heartbeat."""
SILENCE = "bessemer: end runs that fell silent"
NOTICE = "bessemer: tell of broken runs"
SILENT = (
    f"No sign of life for {SILENT_S} s: its process is gone, or its machine cannot reach the server. "
    "A worker takes it up again where it stopped; Retry does so at once."
)
BLOCK = "bessemer-notify"
EVENT = "prefect.flow-run."
OURS = {"prefect.resource.id": [f"prefect.tag.{TAG}"]}
PAYLOAD = (
    '{"text": {{ ((flow_run.name if flow_run.name.startswith(flow.name ~ " ") else flow.name ~ " (" ~ flow_run.name ~ ")") ~ " " ~ '
    'flow_run.state.name ~ ": " ~ (flow_run.state.message or "") ~ " " ~ '
    '((flow_run | ui_url) or "")) | tojson }}}'
)
"""One line of text, as Slack, Mattermost and Teams' workflows take it; whatever a message holds stays inside its quotes."""


def end_silent_runs(api: Api, silent_s: int = SILENT_S) -> bool:
    """Have the server set runs whose heartbeat stopped to Crashed; returns whether anything changed.

    A run that waits to be resumed (AwaitingRetry) sends no heartbeat and is left alone.
    """
    ends = ("Completed", "Failed", "Cancelled", "Crashed", "AwaitingRetry")
    trigger = {
        "type": "event",
        "posture": "Proactive",
        "after": [EVENT + "heartbeat"],
        "expect": [EVENT + name for name in ("heartbeat", *ends)],
        "match": {"prefect.resource.id": ["prefect.flow-run.*"]},
        "match_related": OURS,
        "for_each": ["prefect.resource.id"],
        "threshold": 1,
        "within": silent_s,
    }
    action = {"type": "change-flow-run-state", "state": "CRASHED", "message": SILENT}
    return _ensure(api, SILENCE, "A run without a heartbeat has no process any more.", trigger, action)


def notify(api: Api, url: str) -> bool:
    """Have the server POST one line to `url` for each run that fails or crashes; returns whether anything changed."""
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise InputError(f"{url[:40]} is no address that a line can be posted to; give http://… or https://…")
    changed, block = _webhook(api, url)
    trigger = {
        "type": "event",
        "posture": "Reactive",
        "expect": [EVENT + "Failed", EVENT + "Crashed"],
        "match": {"prefect.resource.id": ["prefect.flow-run.*"]},
        "match_related": OURS,
        "for_each": ["prefect.resource.id"],
        "threshold": 1,
        "within": 0,
    }
    action = {"type": "call-webhook", "block_document_id": block, "payload": PAYLOAD}
    return _ensure(api, NOTICE, "Made by `bessemer notify`.", trigger, action) or changed


def stop_notifying(api: Api) -> bool:
    """Delete the automation and its block; returns whether there was one."""
    found = _named(api, NOTICE)
    for automation in found:
        api.call("DELETE", f"/automations/{automation['id']}")
    if block := api.call("GET", f"/block_types/slug/webhook/block_documents/name/{BLOCK}"):
        api.call("DELETE", f"/block_documents/{block['id']}")
    return bool(found or block)


def _named(api: Api, name: str) -> list[dict[str, Any]]:
    return api.call("POST", "/automations/filter", {"automations": {"name": {"any_": [name]}}}) or []


def _ensure(api: Api, name: str, description: str, trigger: dict[str, Any], action: dict[str, Any]) -> bool:
    wanted = {"name": name, "description": description, "enabled": True, "trigger": trigger, "actions": [action]}
    found = _named(api, name)
    first, others = (found[0] if found else None), found[1:]
    for other in others:  # made by two workers that started at the same moment
        api.call("DELETE", f"/automations/{other['id']}")
    if first is None:
        api.call("POST", "/automations/", wanted)
    elif _holds(first, wanted):
        return bool(others)
    else:
        api.call("PUT", f"/automations/{first['id']}", wanted)
    return True


def _holds(found: Any, wanted: Any) -> bool:
    """Whether the server's object has all that is wanted; it adds ids and defaults, and keeps lists of events as sets."""
    if isinstance(wanted, dict):
        return isinstance(found, dict) and all(name in found and _holds(found[name], value) for name, value in wanted.items())
    if isinstance(wanted, list) and wanted and isinstance(wanted[0], str):
        return isinstance(found, list) and sorted(found) == sorted(wanted)
    if isinstance(wanted, list):
        return isinstance(found, list) and len(found) == len(wanted) and all(map(_holds, found, wanted))
    return bool(found == wanted)


def _webhook(api: Api, url: str) -> tuple[bool, str]:
    """Put the address, which may be a secret, into a block of the server; returns whether the block changed, and its id."""
    path = f"/block_types/slug/webhook/block_documents/name/{BLOCK}?include_secrets=true"
    data = {"method": "POST", "url": url, "headers": {"Content-Type": "application/json"}, "allow_private_urls": True}
    block = api.call("GET", path)
    if block is not None and _holds(block["data"], data):
        return False, block["id"]
    if block is not None:
        api.call("PATCH", f"/block_documents/{block['id']}", {"data": data, "merge_existing_data": False})
        return True, block["id"]
    kind = api.call("GET", "/block_types/slug/webhook")
    schemas = api.call("POST", "/block_schemas/filter", {"block_schemas": {"block_type_id": {"any_": [kind["id"]]}}}) if kind else None
    if not schemas:
        raise PipelineError(f"the server at {api.url} has no webhook block; is it Prefect 3?")
    body = {"name": BLOCK, "data": data, "block_type_id": kind["id"], "block_schema_id": schemas[0]["id"]}
    return True, api.call("POST", "/block_documents/", body)["id"]
