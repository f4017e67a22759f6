"""Storage, artifacts, publication, locks. Nothing above this room opens a file of the store by its path."""
