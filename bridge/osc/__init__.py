"""OSC: UDP and TCP servers, packets, dispatch, subscriptions, OSCQuery."""
