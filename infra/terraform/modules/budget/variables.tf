variable "name" { type = string }
variable "partition" { type = string }
variable "account" { type = string }
variable "project" { type = string }
variable "monthly_limit" { type = number }
variable "emails" { type = list(string) }
variable "scaler_role" { type = string }
