"""`turnout report`: what a running gateway did, from its `/metrics` alone.

Nothing is sent to the servers. What is claimed of speculation is of requests that chance assigned;
all else describes, and says so.
"""
