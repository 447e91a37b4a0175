"""The wish: what this host should be, as one immutable value, and the vocabulary that it is written in.

Belongs here: values and records, the `State` and every transition between two states, what users may ask
for, what the others' views mean for this host, and the wish itself with its file.

Stays out: the kernel, sockets, the store, clocks. A transition gets the time as an argument.

A reviewer checks: a `State` is never changed, only replaced; a transition that finds nothing to do returns
the very state that it got; what a restart needs is on disk before `Wish.change` returns; maps that did not
change stay the same objects, since readers compare large ones by identity.
"""
