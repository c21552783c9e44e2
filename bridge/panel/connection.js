// The WebSocket to the show: reconnects, and limits how often a dragged slider is sent.

let socket = null;

/** Parameter name → value, as the show last reported it. */
export const values = {};

/** Connect and reconnect for good; `onChange(connected)` follows the link, `onMessage` gets each message. */
export function connect(onChange, onMessage) {
  socket = new WebSocket(`${location.protocol === "https:" ? "wss" : "ws"}://${location.host}/panel`);
  socket.onopen = () => onChange(true);
  socket.onclose = () => {
    onChange(false);
    setTimeout(connect, 1000, onChange, onMessage);
  };
  socket.onmessage = event => onMessage(JSON.parse(event.data));
}

/** Send a message at once, if there is a link. */
export function send(message) {
  if (socket?.readyState === WebSocket.OPEN) socket.send(JSON.stringify(message));
}

/** Trigger `name` at once, with an argument if it takes one. */
export function fire(name, value) {
  send({ set: name, value });
}

const pending = new Map();  // name → value, to be sent with the next animation frame

/** Set a parameter. Of several values for one animation frame only the last is sent. */
export function setValue(name, value) {
  if (!pending.size) requestAnimationFrame(sendPending);
  pending.set(name, value);
}

function sendPending() {
  for (const [name, value] of pending) fire(name, value);
  pending.clear();
}
