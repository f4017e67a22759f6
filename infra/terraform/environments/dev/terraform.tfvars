# One team's trial: small, and gone again by a teardown. Add an example by its preset: examples/124m.tfvars, 350m.tfvars, 1b.tfvars.
environment          = "dev"
protect              = false
database_backup_days = 7
