"""moto's server with the few calls the AWS provider makes that moto 5.2.5 lacks, and without some diffs of its own. For apply.py."""

import json
import sys
import uuid

from moto.autoscaling import models as asm
from moto.autoscaling.responses import AutoScalingResponse as AR
from moto.budgets.responses import BudgetsResponse
from moto.ec2.models import launch_templates as lt
from moto.ec2.models.instances import Instance
from moto.ec2.models.security_groups import SecurityGroupRule
from moto.iam.access_control import PermissionResult
from moto.s3.models import FakeBucket
from moto.s3.responses import S3Response
from moto.server import main

_ACTIONS: dict[tuple[str, str], dict] = {}


def describe_subscribers_for_notification(self):
    acct, name, want = self._get_param("AccountId"), self._get_param("BudgetName"), self._get_param("Notification")
    for n in self.backend.budgets[acct][name].notifications:
        if all(n.details.get(k) == v for k, v in want.items() if k != "NotificationState"):
            return json.dumps({"Subscribers": n.subscribers})
    return json.dumps({"Subscribers": []})


def create_budget_action(self):
    p = json.loads(self.body)
    aid = str(uuid.uuid4())
    p.pop("ResourceTags", None)
    _ACTIONS[(p["BudgetName"], aid)] = {**p, "ActionId": aid, "Status": "STANDBY"}
    return json.dumps({"AccountId": p["AccountId"], "BudgetName": p["BudgetName"], "ActionId": aid})


def describe_budget_action(self):
    p = json.loads(self.body)
    a = _ACTIONS.get((p["BudgetName"], p["ActionId"]))
    if a is None:
        return 400, {"x-amzn-errortype": "NotFoundException"}, json.dumps({"__type": "NotFoundException", "Message": "no action"})
    return json.dumps(
        {"AccountId": p["AccountId"], "BudgetName": p["BudgetName"], "Action": {k: v for k, v in a.items() if k != "AccountId"}}
    )


def delete_budget_action(self):
    p = json.loads(self.body)
    a = _ACTIONS.pop((p["BudgetName"], p["ActionId"]), {})
    return json.dumps({"AccountId": p["AccountId"], "BudgetName": p["BudgetName"], "Action": a})


for f in (describe_subscribers_for_notification, create_budget_action, describe_budget_action, delete_budget_action):
    setattr(BudgetsResponse, f.__name__, f)

# --- tags of budgets and budget actions
_TAGS: dict[str, list] = {}


def _arn(p, aid=None):
    return f"arn:aws:budgets::{p['AccountId']}:budget/{p['BudgetName']}" + (f"/action/{aid}" if aid else "")


_cb = BudgetsResponse.create_budget


def create_budget(self):
    p = json.loads(self.body)
    _TAGS[_arn({"AccountId": p["AccountId"], "BudgetName": p["Budget"]["BudgetName"]})] = p.get("ResourceTags", [])
    return _cb(self)


_ca = create_budget_action


def create_budget_action2(self):
    p = json.loads(self.body)
    r = _ca(self)
    _TAGS[_arn(p, json.loads(r)["ActionId"])] = p.get("ResourceTags", [])
    return r


BudgetsResponse.create_budget = create_budget
BudgetsResponse.create_budget_action = create_budget_action2
BudgetsResponse.list_tags_for_resource = lambda self: json.dumps({"ResourceTags": _TAGS.get(json.loads(self.body)["ResourceARN"], [])})
BudgetsResponse.tag_resource = BudgetsResponse.untag_resource = lambda self: "{}"

# --- lifecycle hook without a notification target

_li = asm.LifecycleHook.__init__


def li(self, *a, **k):
    _li(self, *a, **k)
    self.role_arn = None
    self.notification_target_arn = None


asm.LifecycleHook.__init__ = li

# --- DefaultInstanceWarmup

_WARM: dict[str, int] = {}
_cg, _ug, _dg = AR.create_auto_scaling_group, AR.update_auto_scaling_group, AR.describe_auto_scaling_groups


def _keep(self):
    w = self._get_int_param("DefaultInstanceWarmup")
    if w is not None:
        _WARM[self._get_param("AutoScalingGroupName")] = w


def cg(self):
    _keep(self)
    return _cg(self)


def ug(self):
    _keep(self)
    return _ug(self)


def dg(self):
    r = _dg(self)
    for g in r.result["AutoScalingGroups"]:
        if g.name in _WARM:
            g.default_instance_warmup = _WARM[g.name]
    return r


AR.create_auto_scaling_group, AR.update_auto_scaling_group, AR.describe_auto_scaling_groups = cg, ug, dg

# --- description of a rule that names a security group

SecurityGroupRule.description = property(lambda self: self.ip_range.get("Description") or (self.source_group or {}).get("Description"))

# --- launch-template tags must not leak into the template data

_ltv = lt.LaunchTemplateVersion.__init__


def ltv(self, template, number, data, description):
    if data.get("TagSpecifications"):
        data = {**data, "TagSpecifications": [t for t in data["TagSpecifications"] if t.get("ResourceType") != "launch-template"]}
    _ltv(self, template, number, data, description)


lt.LaunchTemplateVersion.__init__ = ltv

# --- an instance given its groups by its network interface, as one with a public address is, has them
_attach = Instance.attach_eni


def attach_eni(self, eni, device_index):
    self.security_groups = self.security_groups or list(eni.group_set)
    return _attach(self, eni, device_index)


Instance.attach_eni = attach_eni

# --- moto reads a bucket policy's Deny without its Condition: ours (TLS only) would refuse everything

FakeBucket.get_permission = lambda self, action, resource: PermissionResult.NEUTRAL

# --- a lifecycle rule's number of newer versions that are kept

_sl, _gl = FakeBucket.set_lifecycle, S3Response.get_bucket_lifecycle


def sl(self, rules):
    _sl(self, rules)
    for kept, given in zip(self.rules, rules, strict=True):
        kept.newer_versions = (given.get("NoncurrentVersionExpiration") or {}).get("NewerNoncurrentVersions")


def gl(self):
    plain = self.serialized

    def with_newer(answer):
        rules = answer.result["Rules"] if isinstance(answer.result, dict) else []  # an error is serialized here too
        for shown, rule in zip(rules, self.backend.get_bucket_lifecycle(self.bucket_name) or [], strict=False):
            if rule.newer_versions:
                shown["NoncurrentVersionExpiration"]["NewerNoncurrentVersions"] = rule.newer_versions
        return plain(answer)

    self.serialized = with_newer
    return _gl(self)


FakeBucket.set_lifecycle, S3Response.get_bucket_lifecycle = sl, gl


if __name__ == "__main__":
    main(sys.argv[1:])
