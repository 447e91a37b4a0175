"""Shortcuts: frames from other hosts straight into the container, past the bridge (ADR 12).

Belongs here: the BPF program and its maps, and the tc filter that holds them.

Stays out: which containers get one. A kernel that has none of this works without it.

A reviewer checks: a failure leaves the bridge in charge, never a frame that goes nowhere; a program that
works differently bears another name.
"""
