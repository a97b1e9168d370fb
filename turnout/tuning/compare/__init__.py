"""`turnout compare`: ways to route, measured against each other on running servers.

Every arm gets the same requests at the same times on two servers; the arms take turns, so that
what disturbs the machine disturbs all alike. Loads, mixes and verdicts are fixed (`protocol`,
`verdicts`) before anything is measured, and every request is kept (`rows`).
"""
