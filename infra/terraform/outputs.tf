output "prefect_api_url" {
  value = local.own_control_plane ? module.control_plane[0].api_url : var.prefect_api_url
}

output "prefect_secret_arn" {
  description = "JSON with the password and, for our own server, its certificate."
  value       = local.own_control_plane ? module.control_plane[0].secret_arn : var.prefect_secret_arn
}

output "control_plane_instance_id" {
  description = "For `aws ssm start-session`."
  value       = local.own_control_plane ? module.control_plane[0].instance_id : null
}

output "pool" {
  value = var.pool
}

output "group_names" {
  value = local.group_names
}

output "region" {
  value = var.region
}

output "storage_root" {
  description = "Set storage.root to this."
  value       = "s3://${module.storage.bucket}/${var.prefix}"
}

output "release" {
  value = { uri = module.storage.release_uri, sha256 = module.storage.release_sha256 }
}

output "scaler_command" {
  description = "What a Prefect server of your own must have running beside it; our own runs it as a service."
  value = join(" ", [
    "python -m infra.machines.scaler --pool ${var.pool} --region ${var.region}",
    "--spot ${local.group_names["spot"]} --on-demand ${local.group_names["on-demand"]}",
    "--fallback-minutes ${var.on_demand_fallback_minutes} --idle-minutes ${var.idle_minutes} --stop-policy ${module.budget.stop_policy_arn}",
  ])
}

# ---------------------------------------------------------------- cost

locals {
  hours_a_month = 730
  own           = local.own_control_plane ? 1 : 0
  idle = var.prices == null ? null : {
    nat           = 0 # there is none: machines have addresses of their own
    control_plane = local.own * var.prices.control_plane_hour
    database      = local.own * (var.prices.database_hour * (var.database_multi_az ? 2 : 1) + var.database_gb * var.prices.database_disk_gb_month / local.hours_a_month)
    disk          = local.own * 20 * var.prices.disk_gb_month / local.hours_a_month
    public_ip     = local.own * (var.public_ip ? var.prices.public_ip_hour : 0)
    secrets       = local.own * 2 * var.prices.secret_month / local.hours_a_month
    keys          = var.prices.key_month / local.hours_a_month
    alarms        = local.own * 2 * var.prices.alarm_month / local.hours_a_month
  }
  machine = var.prices == null ? null : {
    for type in var.instance_types : type => {
      for market, hour in { spot = var.prices.spot_hour[type], on_demand = var.prices.on_demand_hour[type] } :
      market => hour + (var.public_ip ? var.prices.public_ip_hour : 0) + var.root_gb * var.prices.disk_gb_month / local.hours_a_month
    }
  }
}

output "usd_per_hour" {
  description = "Idle (item by item), each machine more, and the most at once. The bucket is by the GB and month. null without prices."
  value = var.prices == null ? null : {
    prices_of       = "${var.prices.date}, ${var.prices.source}"
    idle            = local.idle
    idle_total      = sum(values(local.idle))
    machine         = local.machine
    most_at_once    = sum(values(local.idle)) + max(values(local.machine)[*].spot...) * var.max_machines.spot + max(values(local.machine)[*].on_demand...) * var.max_machines.on_demand
    bucket_gb_month = var.prices.bucket_gb_month
  }
}
