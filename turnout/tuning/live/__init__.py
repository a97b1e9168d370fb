"""`turnout report`: what a running gateway did, from its `/metrics` alone.

Nothing is sent to the servers. What moving a request does is told by those that chance assigned;
all else describes, and says so. Whether servers should speculate is not asked here
(`turnout.tuning.advice`).
"""
