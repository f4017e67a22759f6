variable "bucket" { type = string }
variable "create_bucket" { type = bool }
variable "delete_data" { type = bool }
variable "prefix" { type = string }
variable "archive" { type = string }
