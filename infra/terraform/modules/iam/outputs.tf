output "worker_profile" {
  value = local.own_worker ? aws_iam_instance_profile.worker[0].name : var.worker_profile
}

output "control_plane_profile" {
  value = local.own_control ? aws_iam_instance_profile.control_plane[0].name : var.control_plane_role
}

output "control_plane_role" {
  value = local.own_control ? aws_iam_role.control_plane[0].name : var.control_plane_role
}
