# Two groups, spot and on-demand, both empty until infra/machines/scaler.py sizes them from the queues' depth. It shifts what spot does not
# fill to on-demand: a percentage inside one group would buy on-demand machines at once, or never. AWS itself ends no machine here:
# all are protected from scale-in, and the scaler ends idle ones by their id.

locals {
  groups = {
    spot      = { most = var.max_machines.spot, queues = ["spot"], on_demand_share = 0 }
    on-demand = { most = var.max_machines.on_demand, queues = ["on-demand", "spot"], on_demand_share = 100 }
  }
  ami_id = var.ami_id != null ? var.ami_id : nonsensitive(data.aws_ssm_parameter.ami[0].value)
}

data "aws_ssm_parameter" "ami" {
  count = var.ami_id == null ? 1 : 0
  name  = "/aws/service/deeplearning/ami/x86_64/base-oss-nvidia-driver-gpu-ubuntu-22.04/latest/ami-id"
}

resource "aws_launch_template" "this" {
  # checkov:skip=CKV_AWS_88: an address of its own spares a NAT gateway that costs by the hour while no machine runs; no inbound rule exists, and public_ip = false turns it off
  for_each = local.groups

  name                                 = var.group_names[each.key]
  image_id                             = local.ami_id
  instance_type                        = var.instance_types[0]
  instance_initiated_shutdown_behavior = "terminate"
  update_default_version               = true
  ebs_optimized                        = true

  iam_instance_profile {
    name = var.instance_profile
  }

  metadata_options {
    http_endpoint               = "enabled"
    http_tokens                 = "required"
    http_put_response_hop_limit = 1
    instance_metadata_tags      = "disabled"
  }

  network_interfaces {
    associate_public_ip_address = var.public_ip
    security_groups             = var.security_group_ids
    delete_on_termination       = true
  }

  block_device_mappings {
    device_name = "/dev/sda1"

    ebs {
      volume_size           = var.root_gb
      volume_type           = "gp3"
      encrypted             = true
      delete_on_termination = true
    }
  }

  dynamic "tag_specifications" {
    for_each = ["instance", "volume"]

    content {
      resource_type = tag_specifications.value
      tags          = merge(var.tags, { Name = var.group_names[each.key] })
    }
  }

  user_data = base64gzip(templatefile(var.user_data_template, {
    fetch_script    = var.fetch_script
    region          = var.region
    group           = var.group_names[each.key]
    pool            = var.pool
    queues          = each.value.queues
    prefect_api_url = var.prefect_api_url
    prefect_secret  = var.prefect_secret
    storage_root    = var.storage_root
    release_uri     = var.release_uri
    release_sha256  = var.release_sha256
  }))
}

resource "aws_autoscaling_group" "this" {
  for_each = local.groups

  name                      = var.group_names[each.key]
  min_size                  = 0
  max_size                  = each.value.most
  desired_capacity          = 0
  vpc_zone_identifier       = var.subnet_ids
  protect_from_scale_in     = true
  health_check_type         = "EC2"
  health_check_grace_period = 300
  wait_for_capacity_timeout = "0"
  capacity_rebalance        = false           # it would end a machine that still has its two minutes, or all of them
  suspended_processes       = ["AZRebalance"] # zones that hold unequal numbers are no reason to end a run
  enabled_metrics           = ["GroupDesiredCapacity", "GroupInServiceInstances", "GroupPendingInstances"]

  mixed_instances_policy {
    instances_distribution {
      on_demand_base_capacity                  = 0
      on_demand_percentage_above_base_capacity = each.value.on_demand_share
      on_demand_allocation_strategy            = "prioritized"
      spot_allocation_strategy                 = "capacity-optimized"
    }

    launch_template {
      launch_template_specification {
        launch_template_id = aws_launch_template.this[each.key].id
        version            = aws_launch_template.this[each.key].latest_version
      }

      dynamic "override" {
        for_each = var.instance_types

        content {
          instance_type = override.value
        }
      }
    }
  }

  dynamic "tag" {
    for_each = merge(var.tags, { Name = var.group_names[each.key] })

    content {
      key                 = tag.key
      value               = tag.value
      propagate_at_launch = true
    }
  }

  lifecycle {
    ignore_changes = [desired_capacity] # the scaler's
  }
}

# Whoever ends a machine, its watcher (infra/machines/spot_watcher.py) gets three minutes to let the flow checkpoint.
resource "aws_autoscaling_lifecycle_hook" "drain" {
  for_each = local.groups

  name                   = "drain"
  autoscaling_group_name = aws_autoscaling_group.this[each.key].name
  lifecycle_transition   = "autoscaling:EC2_INSTANCE_TERMINATING"
  heartbeat_timeout      = 180
  default_result         = "CONTINUE"
}
