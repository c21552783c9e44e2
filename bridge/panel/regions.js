// The overlay on the output's preview: skipped regions are dimmed. It is drawn here, never on the output itself.
// The show sends the maps only to panels that ask for them.

import { send } from "/connection.js";

const STORAGE_KEY = "phosphene.regions";
const VEIL = [44, 50, 74, 200];  // red, green, blue and opacity over a skipped region: seen on black and on white
const canvas = document.getElementById("regionmap");
const preview = document.getElementById("output");
const label = document.getElementById("regionshare");
const button = document.getElementById("regions");
let isOn = false;

/** Ask the show for the maps, if the overlay is on; call it whenever the link is there again. */
export function askForRegions() {
  if (isOn) send({ regions: true });
}

/** Draw a map: its rows, columns, a byte for each region in Base64, and the share of the last second. */
export function showRegions({ rows, columns, share, cells }) {
  if (!isOn) return;  // a map that was on its way when the overlay was turned off
  canvas.hidden = !rows;
  label.hidden = false;
  label.textContent = `${Math.round(share * 100)} % computed`;
  if (!rows) return;
  const { naturalWidth, naturalHeight } = preview, ratio = naturalWidth / naturalHeight || 1;
  canvas.style.width = `${100 * Math.min(1, ratio)}%`;  // as the preview lies in its square
  canvas.style.height = `${100 * Math.min(1, 1 / ratio)}%`;
  if (canvas.width !== columns) canvas.width = columns;
  if (canvas.height !== rows) canvas.height = rows;
  const pen = canvas.getContext("2d"), image = pen.createImageData(columns, rows), computed = atob(cells);
  for (let i = 0; i < computed.length; i++) {
    if (!computed.charCodeAt(i)) image.data.set(VEIL, 4 * i);
  }
  pen.putImageData(image, 0, 0);
}

function turn(on) {
  isOn = on;
  button.classList.toggle("on", on);
  button.setAttribute("aria-pressed", on);
  canvas.hidden = label.hidden = true;
}

function readStored() {
  try {
    return localStorage.getItem(STORAGE_KEY) === "on";
  } catch {  // the browser stores nothing
    return false;
  }
}

button.onclick = () => {
  turn(!isOn);
  send({ regions: isOn });
  try {
    localStorage.setItem(STORAGE_KEY, isOn ? "on" : "off");
  } catch {  // the overlay works all the same, until the page is closed
  }
};
turn(readStored());
