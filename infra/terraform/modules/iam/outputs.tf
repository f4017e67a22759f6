output "worker_profile" {
  value = local.own_worker ? aws_iam_instance_profile.this["worker"].name : var.worker_profile
}

output "control_plane_profile" {
  value = local.own_control ? aws_iam_instance_profile.this["control-plane"].name : var.control_plane_role
}

output "control_plane_role" {
  value = local.own_control ? aws_iam_role.this["control-plane"].name : var.control_plane_role
}
