"""Parameter Execute DAT of the component.

This year's builds pass ``(par, prev)`` to a value's callback, older ones ``(par, val, prev)``. TouchDesigner looks at
how many arguments a callback names, so this one names two and takes any number from one on.
"""


def onValueChange(par, prev=None, *_):
    parent().ext.PhospheneExt.Send(par)


def onPulse(par):
    parent().ext.PhospheneExt.Pulse(par)
