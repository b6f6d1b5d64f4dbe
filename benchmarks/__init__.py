"""Commands that measure this server, beside others, on models they make themselves."""
