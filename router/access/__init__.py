"""Who may do what: credentials, scopes, limits, and the audit log, all of them at the router's door."""
