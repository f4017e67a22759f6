# What others rely on: the database has a twin in another zone, keeps a month of backups, and cannot be deleted by mistake.
environment          = "prod"
protect              = true
database_class       = "db.t4g.small"
database_multi_az    = true
database_backup_days = 30
