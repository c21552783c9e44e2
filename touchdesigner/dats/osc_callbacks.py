"""Callbacks of the component's OSC In DAT."""


def onReceiveOSC(dat, rowIndex, message, bytes, timeStamp, address, args, peer):
    parent().ext.PhospheneExt.Receive(address, args)
