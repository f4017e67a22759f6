output "topic_arn" {
  value = aws_sns_topic.alarms.arn
}

output "stop_policy_arn" {
  value = aws_iam_policy.stop.arn
}
