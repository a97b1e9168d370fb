"""`turnout recommend`: what the measurements say the config and the servers should be."""
