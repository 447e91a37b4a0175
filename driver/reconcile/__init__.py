"""The reconcilers: read, diff, apply, until the kernel is as the wish says.

Belongs here: what should be in the kernel for a state (`desired`, `balancers`), which part of it a change
concerns (`part`), the ordered difference (`plan`), what somebody else has changed (`drift`), and the loop
that two threads run: one for the networks, one for the sandboxes.

Stays out: how a kernel object is made (`kernel`), and where the wish comes from (`overlay`, `cluster`).

A reviewer checks: a round starts from the wish and from what the kernel says, never from what an earlier
round did; trouble with one network, container or object never stops another; what did not converge is
logged, and tried again with growing pauses.
"""
