"""Parameter Execute DAT of the component."""


def onValueChange(par, val, prev):
    parent().ext.PhospheneExt.Send(par)


def onPulse(par):
    parent().ext.PhospheneExt.Pulse(par)
