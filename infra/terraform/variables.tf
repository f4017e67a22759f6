# ---------------------------------------------------------------- what it is

variable "project" {
  description = "First part of every name, and the tag that the budget filters by."
  type        = string
  default     = "bessemer"

  validation {
    condition     = can(regex("^[a-z][a-z0-9-]{1,20}$", var.project))
    error_message = "project is ${var.project}; it starts names: 2 to 21 lower-case letters, digits and dashes, a letter first."
  }
}

variable "environment" {
  description = "dev or prod; second part of every name."
  type        = string

  validation {
    condition     = contains(["dev", "prod"], var.environment)
    error_message = "environment is ${var.environment}; there are dev and prod, each with a folder under environments/."
  }
}

variable "region" {
  description = "Where everything is. The list holds the regions that rent machines with A100 or H100 GPUs or G5 or G6 machines."
  type        = string

  validation {
    condition = contains([
      "us-east-1", "us-east-2", "us-west-2", "ca-central-1", "sa-east-1", "eu-central-1", "eu-west-1", "eu-west-2", "eu-west-3", "eu-north-1",
      "ap-northeast-1", "ap-northeast-2", "ap-south-1", "ap-southeast-1", "ap-southeast-2", "ap-southeast-3",
    ], var.region)
    error_message = "region is ${var.region}, which is not known to rent GPU machines; take one such as us-east-1 or eu-central-1 (the list: variables.tf)."
  }
}

variable "tags" {
  description = "Put on everything besides Project and Environment."
  type        = map(string)
  default     = {}
}

variable "protect" {
  description = "Whether the database refuses to be deleted and leaves a last snapshot. Set it to false and apply before a teardown."
  type        = bool
}

# ---------------------------------------------------------------- data

variable "bucket" {
  description = "The data bucket. It is kept by a teardown."
  type        = string

  validation {
    condition     = can(regex("^[a-z0-9][a-z0-9-]{1,61}[a-z0-9]$", var.bucket)) && !startswith(var.bucket, "your-")
    error_message = "bucket is ${var.bucket}; a name of your own is wanted: 3 to 63 lower-case letters, digits and dashes, free in all of AWS."
  }
}

variable "create_bucket" {
  description = "false: the bucket is there already (yours, or kept by a teardown) and its settings stay as they are."
  type        = bool
  default     = true
}

variable "delete_data" {
  description = "Whether a teardown may delete the bucket with everything in it."
  type        = bool
  default     = false
}

variable "prefix" {
  description = "What storage.root names under the bucket: the workers write there and nowhere else."
  type        = string
  default     = "runs"

  validation {
    condition     = can(regex("^[A-Za-z0-9_][A-Za-z0-9_/-]*[A-Za-z0-9_]$", var.prefix)) && !startswith(var.prefix, "releases")
    error_message = "prefix is '${var.prefix}'; letters, digits, - and _ with / only inside, and not releases (the code lies there)."
  }
}

variable "read_prefixes" {
  description = "Where sources lie in the bucket: the workers may read there."
  type        = list(string)
  default     = ["corpus"]
}

variable "code_archive" {
  description = "The code that machines run, a .tar.gz (`make deploy-workers` makes it from HEAD). Its digest is part of its name, and checked."
  type        = string

  validation {
    condition     = fileexists(var.code_archive)
    error_message = "${var.code_archive} is not there; `make deploy-workers` makes it, or: git archive --format=tar.gz -o FILE HEAD"
  }
}

# ---------------------------------------------------------------- GPU machines

variable "instance_types" {
  description = "Types that may be taken, the best first. Of one family: a run must find the same GPUs on each."
  type        = list(string)

  validation {
    condition     = length(var.instance_types) > 0 && alltrue([for type in var.instance_types : can(regex("^(g4dn|g5|g6|g6e|p3|p3dn|p4d|p4de|p5|p5e|p5en)\\.[a-z0-9]+$", type))])
    error_message = "instance_types has ${join(", ", var.instance_types)}; types with NVIDIA GPUs are wanted, of the families g4dn, g5, g6, g6e, p3, p4d, p4de, p5, p5e, p5en."
  }
  validation {
    condition     = length(distinct([for type in var.instance_types : split(".", type)[0]])) == 1
    error_message = "instance_types mixes families (${join(", ", var.instance_types)}); A100 and H100 in one pool give other speeds, memory and execution classes: take one family."
  }
}

variable "gpus" {
  description = "GPUs that a machine must have: run.ranks of the preset. Checked against each type at plan time."
  type        = number

  validation {
    condition     = contains([1, 2, 4, 8], var.gpus)
    error_message = "gpus is ${var.gpus}; machines have 1, 2, 4 or 8."
  }
}

variable "max_machines" {
  description = "The most machines of each market at once."
  type        = object({ spot = number, on_demand = number })

  validation {
    condition     = alltrue([for most in [var.max_machines.spot, var.max_machines.on_demand] : most >= 0 && most <= 16 && floor(most) == most])
    error_message = "max_machines is ${jsonencode(var.max_machines)}; whole numbers from 0 to 16 are wanted."
  }
  validation {
    condition     = var.max_machines.spot + var.max_machines.on_demand > 0
    error_message = "max_machines allows no machine at all; set spot or on_demand to 1 or more."
  }
}

variable "span_machines" {
  description = "Whether one run may span several machines (run.nodes): they may then reach each other, by any port. Nobody else may."
  type        = bool
  default     = false
}

variable "on_demand_fallback_minutes" {
  description = "How long a spot machine may be wanted and not come before an on-demand one takes its place."
  type        = number
  default     = 15

  validation {
    condition     = var.on_demand_fallback_minutes >= 1 && var.on_demand_fallback_minutes <= 1440
    error_message = "on_demand_fallback_minutes is ${var.on_demand_fallback_minutes}; 1 to 1440 is wanted (max_machines.on_demand = 0 turns the fallback off)."
  }
}

variable "idle_minutes" {
  description = "How long a machine may have no run before it is given back. Its set-up takes about as long, so below 5 it is made for nothing."
  type        = number
  default     = 10

  validation {
    condition     = var.idle_minutes >= 1 && var.idle_minutes <= 240
    error_message = "idle_minutes is ${var.idle_minutes}; 1 to 240 is wanted."
  }
}

variable "root_gb" {
  description = "Size of the root volume: the image, 10 GB of packages, and the code. Scratch is the machine's own NVMe."
  type        = number
  default     = 120

  validation {
    condition     = var.root_gb >= 80 && var.root_gb <= 2000
    error_message = "root_gb is ${var.root_gb}; 80 to 2000 is wanted (the image alone has 65)."
  }
}

variable "ami_id" {
  description = "An image with NVIDIA's driver, of the Ubuntu 22.04 kind. null: AWS's Deep Learning Base image, the newest at the time of the apply."
  type        = string
  default     = null

  validation {
    condition     = var.ami_id == null || can(regex("^ami-[0-9a-f]{8,17}$", var.ami_id))
    error_message = "ami_id is ${coalesce(var.ami_id, "null")}; ami- and 8 to 17 hexadecimal digits is wanted, or null."
  }
}

variable "pool" {
  description = "The Prefect work pool of these machines; its queues are spot and on-demand."
  type        = string
  default     = "gpu"
}

# ---------------------------------------------------------------- network, roles: your own, or ours

variable "vpc_id" {
  description = "Your VPC; null: one is made, with an S3 gateway endpoint and no NAT gateway."
  type        = string
  default     = null
}

variable "subnet_ids" {
  description = "Subnets of vpc_id, in two zones at least (the database wants two)."
  type        = list(string)
  default     = []

  validation {
    condition     = (var.vpc_id == null && length(var.subnet_ids) == 0) || (var.vpc_id != null && length(var.subnet_ids) >= 2)
    error_message = "vpc_id and subnet_ids go together: both unset, or a VPC and at least two of its subnets."
  }
}

variable "vpc_cidr" {
  type    = string
  default = "10.42.0.0/16"

  validation {
    condition     = can(cidrsubnet(var.vpc_cidr, 4, 15)) && tonumber(split("/", var.vpc_cidr)[1]) <= 22
    error_message = "vpc_cidr is ${var.vpc_cidr}; an IPv4 block of /22 or larger is wanted, such as 10.42.0.0/16."
  }
}

variable "public_ip" {
  description = "true: machines reach out by an address of their own, and nobody can reach in (no inbound rule). false: your subnets have a NAT."
  type        = bool
  default     = true
}

variable "worker_instance_profile" {
  description = "Your instance profile for the workers; null: one is made, limited to the bucket's prefixes."
  type        = string
  default     = null
}

variable "control_plane_role" {
  description = "Your role, with an instance profile of the same name, for the Prefect server and the scaler; null: one is made."
  type        = string
  default     = null
}

# ---------------------------------------------------------------- Prefect server

variable "prefect_api_url" {
  description = "A Prefect server of your own, or Cloud; null: one is made. With your own, run infra/machines/scaler.py beside it."
  type        = string
  default     = null

  validation {
    condition     = var.prefect_api_url == null || can(regex("^https://.*/api(/accounts/.*)?$", var.prefect_api_url))
    error_message = "prefect_api_url is ${coalesce(var.prefect_api_url, "null")}; an https:// address that ends in /api is wanted: the password goes over it."
  }
}

variable "prefect_secret_arn" {
  description = "With prefect_api_url: the secret with its password, JSON: {\"auth\": \"user:password\"} or {\"key\": \"pnu_…\"}, and \"certificate\" (PEM) when it is self-signed."
  type        = string
  default     = null

  validation {
    condition     = (var.prefect_api_url == null) == (var.prefect_secret_arn == null)
    error_message = "prefect_secret_arn belongs to prefect_api_url: set both, or neither."
  }
}

variable "scaler_role" {
  description = "With prefect_api_url: the role that your scaler runs under; the budget's stop policy is attached to it."
  type        = string
  default     = null

  validation {
    condition     = (var.prefect_api_url == null) == (var.scaler_role == null)
    error_message = "scaler_role belongs to prefect_api_url (it is what the budget stops): set both, or neither."
  }
}

variable "control_plane_allowed_cidrs" {
  description = "Who reaches the server's port 443 besides the workers; empty: by SSM port forwarding only."
  type        = list(string)
  default     = []

  validation {
    condition     = alltrue([for cidr in var.control_plane_allowed_cidrs : can(cidrhost(cidr, 0)) && cidr != "0.0.0.0/0"])
    error_message = "control_plane_allowed_cidrs has ${jsonencode(var.control_plane_allowed_cidrs)}; IPv4 blocks are wanted, and not the whole internet."
  }
}

variable "control_plane_instance_type" {
  type    = string
  default = "t3.small"
}

variable "control_plane_ami_id" {
  description = "An Ubuntu 22.04 image for amd64; null: Canonical's newest."
  type        = string
  default     = null
}

variable "database_class" {
  type    = string
  default = "db.t4g.micro"

  validation {
    condition     = startswith(var.database_class, "db.")
    error_message = "database_class is ${var.database_class}; a class of RDS is wanted, such as db.t4g.micro."
  }
}

variable "database_gb" {
  type    = number
  default = 20

  validation {
    condition     = var.database_gb >= 20 && var.database_gb <= 1000
    error_message = "database_gb is ${var.database_gb}; 20 to 1000 is wanted."
  }
}

variable "database_backup_days" {
  type    = number
  default = 7

  validation {
    condition     = var.database_backup_days >= 1 && var.database_backup_days <= 35
    error_message = "database_backup_days is ${var.database_backup_days}; 1 to 35 is wanted: 0 would turn the backups off."
  }
}

variable "database_multi_az" {
  type    = bool
  default = false
}

# ---------------------------------------------------------------- money

variable "monthly_budget_usd" {
  description = "At 80 % a mail, at 100 % no machine is started any more and those there stop. AWS counts up to a day late."
  type        = number

  validation {
    condition     = var.monthly_budget_usd >= 1
    error_message = "monthly_budget_usd is ${var.monthly_budget_usd}; 1 or more is wanted."
  }
}

variable "alarm_emails" {
  description = "Who is told; each address gets a mail to confirm first."
  type        = list(string)

  validation {
    condition     = length(var.alarm_emails) > 0 && alltrue([for each in var.alarm_emails : can(regex("^[^@ ]+@[^@ ]+\\.[^@ ]+$", each))])
    error_message = "alarm_emails is ${jsonencode(var.alarm_emails)}; at least one mail address is wanted: nobody would hear of the budget."
  }
}

variable "prices" {
  description = "US dollars, looked up by you for your region: published figures contradict each other and change, so there is no default. null: no cost is shown."
  type = object({
    date                   = string
    source                 = string
    on_demand_hour         = map(number) # by instance type
    spot_hour              = map(number)
    control_plane_hour     = number
    database_hour          = number
    public_ip_hour         = number
    disk_gb_month          = number
    database_disk_gb_month = number
    secret_month           = number
    key_month              = number
    alarm_month            = number
    bucket_gb_month        = number
  })
  default = null

  validation {
    condition     = var.prices == null || (can(regex("^20[0-9]{2}-[01][0-9]-[0-3][0-9]$", try(var.prices.date, ""))) && length(try(var.prices.source, "")) > 8)
    error_message = "prices needs the date (YYYY-MM-DD) and the source that its figures are from."
  }
  validation {
    condition     = var.prices == null || alltrue([for type in var.instance_types : try(var.prices.on_demand_hour[type] > 0 && var.prices.spot_hour[type] > 0, false)])
    error_message = "prices lacks on_demand_hour or spot_hour of one of ${join(", ", var.instance_types)}."
  }
}
