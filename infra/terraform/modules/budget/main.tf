# The budget's action attaches a policy to the scaler's role. Denying the worker's role would stop nothing: a group starts machines by
# AWS's own service-linked role. With the policy attached the scaler cannot raise a group any more, sees that it is so, sets both groups to
# a maximum of 0 and ends their machines, each of which first lets its flow checkpoint.

resource "aws_kms_key" "topic" {
  description             = "${var.name}: messages of the budget and the alarms"
  enable_key_rotation     = true
  deletion_window_in_days = 7

  policy = jsonencode({
    Version = "2012-10-17"
    Statement = [
      {
        Sid       = "Account"
        Effect    = "Allow"
        Principal = { AWS = "arn:${var.partition}:iam::${var.account}:root" }
        Action    = "kms:*"
        Resource  = "*"
      },
      { # The AWS-managed key cannot say this, so a topic under it would never get a budget's message.
        Sid       = "Publishers"
        Effect    = "Allow"
        Principal = { Service = ["budgets.amazonaws.com", "cloudwatch.amazonaws.com"] }
        Action    = ["kms:GenerateDataKey*", "kms:Decrypt"]
        Resource  = "*"
        Condition = { StringEquals = { "aws:SourceAccount" = var.account } }
      },
    ]
  })
}

resource "aws_sns_topic" "alarms" {
  name              = "${var.name}-alarms"
  kms_master_key_id = aws_kms_key.topic.arn
}

resource "aws_sns_topic_policy" "alarms" {
  arn = aws_sns_topic.alarms.arn
  policy = jsonencode({
    Version = "2012-10-17"
    Statement = [{
      Sid       = "Publishers"
      Effect    = "Allow"
      Principal = { Service = ["budgets.amazonaws.com", "cloudwatch.amazonaws.com"] }
      Action    = "sns:Publish"
      Resource  = aws_sns_topic.alarms.arn
      Condition = { StringEquals = { "aws:SourceAccount" = var.account } }
    }]
  })
}

resource "aws_sns_topic_subscription" "mail" {
  for_each = toset(var.emails)

  topic_arn = aws_sns_topic.alarms.arn
  protocol  = "email"
  endpoint  = each.value
}

resource "aws_budgets_budget" "month" {
  name         = "${var.name}-month"
  budget_type  = "COST"
  time_unit    = "MONTHLY"
  limit_amount = tostring(var.monthly_limit)
  limit_unit   = "USD"

  cost_filter {
    name   = "TagKeyValue"
    values = [join("$", ["user:Project", var.project])] # the tag must be activated for cost allocation, once, in the billing console
  }

  dynamic "notification" {
    for_each = [80, 100]

    content {
      comparison_operator       = "GREATER_THAN"
      notification_type         = "ACTUAL"
      threshold                 = notification.value
      threshold_type            = "PERCENTAGE"
      subscriber_sns_topic_arns = [aws_sns_topic.alarms.arn]
    }
  }

  depends_on = [aws_sns_topic_policy.alarms]
}

resource "aws_iam_policy" "stop" {
  name        = "${var.name}-budget-stop"
  description = "Attached to the scaler's role by the budget: no machine is started any more, and the scaler ends those there"
  policy = jsonencode({
    Version = "2012-10-17"
    Statement = [{
      Sid      = "NoMoreMachines"
      Effect   = "Deny"
      Action   = ["autoscaling:SetDesiredCapacity", "ec2:RunInstances", "ec2:CreateFleet"]
      Resource = ["*"]
    }]
  })
}

resource "aws_iam_role" "budget" {
  name        = "${var.name}-budget"
  description = "AWS Budgets: may attach the stop policy to the scaler's role, nothing else"
  assume_role_policy = jsonencode({
    Version = "2012-10-17"
    Statement = [{
      Effect    = "Allow"
      Principal = { Service = "budgets.amazonaws.com" }
      Action    = "sts:AssumeRole"
      Condition = { StringEquals = { "aws:SourceAccount" = var.account } }
    }]
  })
}

resource "aws_iam_role_policy" "budget" {
  name = "stop"
  role = aws_iam_role.budget.id
  policy = jsonencode({
    Version = "2012-10-17"
    Statement = [{
      Effect    = "Allow"
      Action    = ["iam:AttachRolePolicy", "iam:DetachRolePolicy"]
      Resource  = ["arn:${var.partition}:iam::${var.account}:role/${var.scaler_role}"]
      Condition = { ArnEquals = { "iam:PolicyARN" = aws_iam_policy.stop.arn } }
    }]
  })
}

resource "aws_budgets_budget_action" "stop" {
  budget_name        = aws_budgets_budget.month.name
  action_type        = "APPLY_IAM_POLICY"
  approval_model     = "AUTOMATIC"
  notification_type  = "ACTUAL"
  execution_role_arn = aws_iam_role.budget.arn

  action_threshold {
    action_threshold_type  = "PERCENTAGE"
    action_threshold_value = 100
  }

  definition {
    iam_action_definition {
      policy_arn = aws_iam_policy.stop.arn
      roles      = [var.scaler_role]
    }
  }

  subscriber {
    subscription_type = "SNS"
    address           = aws_sns_topic.alarms.arn
  }

  depends_on = [aws_iam_role_policy.budget, aws_sns_topic_policy.alarms]
}
