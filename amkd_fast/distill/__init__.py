"""Train small networks from large ones: data, networks, a Lightning module and the command line.

``import amkd_fast`` imports nothing of this; it needs the extra ``train``.
"""
