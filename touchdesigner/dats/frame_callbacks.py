"""Execute DAT of the component."""


def onFrameStart(frame):
    parent().ext.PhospheneExt.Tick()


def onExit():
    parent().ext.PhospheneExt.Stop()
