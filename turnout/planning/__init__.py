"""What must be decided before the first server runs.

Everything here is a pure function of one frozen `Deployment`: models, precisions, GPUs, a way to
speculate. The subcommands of `turnout plan` only show views of it. Nothing is fetched: models and
GPUs come from the catalogue beside this file, or from a folder on this machine. What rests on
figures of other deployments is labelled assumed, with the command that measures it on one's own.
"""
