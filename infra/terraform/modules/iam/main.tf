# Two roles: what a GPU worker may do, and what the Prefect server with its scaler may. Neither reads or writes outside its prefixes.

locals {
  own_worker  = var.worker_profile == null
  own_control = var.control_plane && var.control_plane_role == null
  groups      = [for name in var.group_names : "arn:${var.partition}:autoscaling:${var.region}:${var.account}:autoScalingGroup:*:autoScalingGroupName/${name}"]

  roles = merge(
    local.own_worker ? { worker = "Bessemer GPU workers: the bucket's prefixes, their password, the end of their own lifecycle" } : {},
    local.own_control ? { control-plane = "Bessemer Prefect server and scaler: its secrets, and the size of the GPU groups" } : {},
  )
  read_release = {
    Sid      = "ReadRelease"
    Effect   = "Allow"
    Action   = ["s3:GetObject"]
    Resource = ["${var.bucket_arn}/releases/*"]
  }
  statements = {
    worker = concat([
      local.read_release,
      {
        Sid      = "Artifacts"
        Effect   = "Allow"
        Action   = ["s3:GetObject", "s3:PutObject", "s3:DeleteObject", "s3:AbortMultipartUpload", "s3:ListMultipartUploadParts"]
        Resource = ["${var.bucket_arn}/${var.prefix}/*"]
      },
      {
        Sid      = "List"
        Effect   = "Allow"
        Action   = ["s3:ListBucket"]
        Resource = [var.bucket_arn]
        # IfExists: reading a missing object is asked about without a prefix, and without this it would be 403, not 404.
        Condition = { StringLikeIfExists = { "s3:prefix" = concat(["${var.prefix}/*"], [for each in var.read_prefixes : "${each}/*"]) } }
      },
      {
        Sid      = "EndOfLifecycle"
        Effect   = "Allow"
        Action   = ["autoscaling:CompleteLifecycleAction", "autoscaling:RecordLifecycleActionHeartbeat"]
        Resource = local.groups
      },
      {
        Sid      = "PrefectPassword"
        Effect   = "Allow"
        Action   = ["secretsmanager:GetSecretValue"]
        Resource = [var.secret_arn]
      },
      ], length(var.read_prefixes) == 0 ? [] : [{
        Sid      = "ReadSources"
        Effect   = "Allow"
        Action   = ["s3:GetObject"]
        Resource = [for each in var.read_prefixes : "${var.bucket_arn}/${each}/*"]
    }])

    control-plane = [
      local.read_release,
      {
        Sid      = "PrefectPassword"
        Effect   = "Allow"
        Action   = ["secretsmanager:GetSecretValue", "secretsmanager:PutSecretValue"]
        Resource = [var.secret_arn]
      },
      {
        Sid      = "DatabasePassword"
        Effect   = "Allow"
        Action   = ["secretsmanager:GetSecretValue"]
        Resource = [var.database_secret_arn]
      },
      {
        Sid      = "SeeGroups"
        Effect   = "Allow"
        Action   = ["autoscaling:DescribeAutoScalingGroups"] # AWS knows no resource for it
        Resource = ["*"]
      },
      {
        Sid      = "Scale"
        Effect   = "Allow"
        Action   = ["autoscaling:SetDesiredCapacity", "autoscaling:TerminateInstanceInAutoScalingGroup"]
        Resource = local.groups
      },
      {
        Sid       = "Stop"
        Effect    = "Allow"
        Action    = ["autoscaling:UpdateAutoScalingGroup"]
        Resource  = local.groups
        Condition = { NumericEquals = { "autoscaling:MaxSize" = "0" } } # this right can only ever stop a group
      },
      {
        Sid      = "SeeBudgetStop"
        Effect   = "Allow"
        Action   = ["iam:ListAttachedRolePolicies"]
        Resource = ["arn:${var.partition}:iam::${var.account}:role/${var.name}-control-plane"]
      },
    ]
  }
}

resource "aws_iam_role" "this" {
  for_each = local.roles

  name        = "${var.name}-${each.key}"
  description = each.value
  assume_role_policy = jsonencode({
    Version = "2012-10-17"
    Statement = [{
      Effect    = "Allow"
      Principal = { Service = "ec2.amazonaws.com" }
      Action    = "sts:AssumeRole"
    }]
  })
}

resource "aws_iam_role_policy" "this" {
  for_each = local.roles

  name   = each.key
  role   = aws_iam_role.this[each.key].id
  policy = jsonencode({ Version = "2012-10-17", Statement = local.statements[each.key] })
}

resource "aws_iam_role_policy_attachment" "session" {
  for_each = local.roles

  role       = aws_iam_role.this[each.key].name
  policy_arn = "arn:${var.partition}:iam::aws:policy/AmazonSSMManagedInstanceCore"
}

resource "aws_iam_instance_profile" "this" {
  for_each = local.roles

  name = "${var.name}-${each.key}"
  role = aws_iam_role.this[each.key].name
}
