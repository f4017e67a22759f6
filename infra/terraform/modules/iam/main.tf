# Two roles: what a GPU worker may do, and what the Prefect server with its scaler may. Neither reads or writes outside its prefixes.

locals {
  own_worker  = var.worker_profile == null
  own_control = var.control_plane && var.control_plane_role == null
  groups      = [for name in var.group_names : "arn:${var.partition}:autoscaling:${var.region}:${var.account}:autoScalingGroup:*:autoScalingGroupName/${name}"]

  ec2_may_assume = jsonencode({
    Version = "2012-10-17"
    Statement = [{
      Effect    = "Allow"
      Principal = { Service = "ec2.amazonaws.com" }
      Action    = "sts:AssumeRole"
    }]
  })
  read_release = {
    Sid      = "ReadRelease"
    Effect   = "Allow"
    Action   = ["s3:GetObject"]
    Resource = ["${var.bucket_arn}/releases/*"]
  }
}

# ---------------------------------------------------------------- GPU workers

resource "aws_iam_role" "worker" {
  count = local.own_worker ? 1 : 0

  name               = "${var.name}-worker"
  description        = "Bessemer GPU workers: the bucket's prefixes, their password, the end of their own lifecycle"
  assume_role_policy = local.ec2_may_assume
}

resource "aws_iam_role_policy" "worker" {
  count = local.own_worker ? 1 : 0

  name = "worker"
  role = aws_iam_role.worker[0].id
  policy = jsonencode({
    Version = "2012-10-17"
    Statement = concat([
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
  })
}

resource "aws_iam_role_policy_attachment" "worker_session" {
  count = local.own_worker ? 1 : 0

  role       = aws_iam_role.worker[0].name
  policy_arn = "arn:${var.partition}:iam::aws:policy/AmazonSSMManagedInstanceCore"
}

resource "aws_iam_instance_profile" "worker" {
  count = local.own_worker ? 1 : 0

  name = "${var.name}-worker"
  role = aws_iam_role.worker[0].name
}

# ---------------------------------------------------------------- Prefect server and scaler

resource "aws_iam_role" "control_plane" {
  count = local.own_control ? 1 : 0

  name               = "${var.name}-control-plane"
  description        = "Bessemer Prefect server and scaler: its secrets, and the size of the GPU groups"
  assume_role_policy = local.ec2_may_assume
}

resource "aws_iam_role_policy" "control_plane" {
  count = local.own_control ? 1 : 0

  name = "control-plane"
  role = aws_iam_role.control_plane[0].id
  policy = jsonencode({
    Version = "2012-10-17"
    Statement = [
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
        Resource = [aws_iam_role.control_plane[0].arn]
      },
    ]
  })
}

resource "aws_iam_role_policy_attachment" "control_plane_session" {
  count = local.own_control ? 1 : 0

  role       = aws_iam_role.control_plane[0].name
  policy_arn = "arn:${var.partition}:iam::aws:policy/AmazonSSMManagedInstanceCore"
}

resource "aws_iam_instance_profile" "control_plane" {
  count = local.own_control ? 1 : 0

  name = "${var.name}-control-plane"
  role = aws_iam_role.control_plane[0].name
}
