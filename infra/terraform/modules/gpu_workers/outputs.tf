output "group_arns" {
  value = { for market, group in aws_autoscaling_group.this : market => group.arn }
}

output "groups" {
  value = aws_autoscaling_group.this
}

output "templates" {
  value     = aws_launch_template.this
  sensitive = true # long: the machines' set-up
}
