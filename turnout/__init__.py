"""The workbench around the gateway, and the command line.

Nothing in the gateway (`proxy`, `config`, `routing`) imports it.
"""
