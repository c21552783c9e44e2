"""The HTTP port: the panel's page, its server and its access rules."""
