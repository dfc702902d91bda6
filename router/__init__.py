"""The router: takes clients' calls, routes them to shards, merges what comes back. Stateless: run as many as you like."""
