"""Typed settings: one model, one YAML file, environment overrides.

`settings` is the model, `loading` reads a file into it and says what is wrong in the user's words.
Nothing here does anything but describe: the gateway is wired from these values in `proxy.app`.
"""
