"""`turnout replay`: what another policy or config would have done with the requests of a log.

The real router is asked again for each request of a decision log, with the draws and loads of then
(`asking`), and has been told the outcomes of then. Where it differs, what came of the requests
that chance sent there tells what the change is worth (`turnout.tuning.weighting`), or the report
says that too few were.
"""
