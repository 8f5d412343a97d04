"""What the store knows: schema, database, filters and the one commit point."""
