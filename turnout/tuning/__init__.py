"""What sends traffic and judges what comes back: the load generator, the demo.

Everything here is a client: it sees what users of the gateway see, over HTTP, with the `openai`
client. One load generator (`load`) serves every command that sends requests.
"""
