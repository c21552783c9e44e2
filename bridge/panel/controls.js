// The controls: one row per parameter, built from the table that the show sends. No parameter is hard-coded here.

import { fire, setValue, values } from "/connection.js";

const rows = new Map();  // parameter name → {parameter, show(value)}
let draggedSlider = null;
document.addEventListener("pointerdown", event => {
  if (event.target.type === "range") draggedSlider = event.target;
});
document.addEventListener("pointerup", () => { draggedSlider = null; });

/** Create an element with properties and children. */
export function element(tag, properties = {}, ...children) {
  const node = Object.assign(document.createElement(tag), properties);
  node.append(...children);
  return node;
}

/** Move a slider to `value`, unless the user is dragging it. */
export function moveSlider(slider, value) {
  if (slider !== draggedSlider) slider.value = value;
}

/** Build the rows, in groups by the first part of their name. */
export function buildControls(container, table, search) {
  rows.clear();
  const sizes = new Map(), groups = new Map();
  const head = parameter => parameter.name.split("/")[1];
  for (const parameter of table) sizes.set(head(parameter), (sizes.get(head(parameter)) || 0) + 1);
  for (const parameter of table) {
    const group = sizes.get(head(parameter)) > 1 ? head(parameter) : "general";
    if (!groups.has(group)) {
      const open = ["prompt", "general"].includes(group);
      groups.set(group, element("details", { open }, element("summary", { textContent: group })));
    }
    groups.get(group).append(buildRow(parameter));
  }
  container.replaceChildren(...groups.values());
  filterControls(container, search);
}

/** Show the rows whose name or help contains `search`, and open their groups. */
export function filterControls(container, search) {
  const needle = search.trim().toLowerCase();
  for (const group of container.children) {
    let any = false;
    for (const row of group.querySelectorAll(".row")) {
      const { parameter } = rows.get(row.dataset.row);
      const matches = parameter.name.includes(needle) || parameter.help.toLowerCase().includes(needle);
      row.hidden = !matches;
      any ||= matches;
    }
    group.hidden = !any;
    if (needle && any) group.open = true;
  }
}

/** Show the value of a parameter in its row. */
export function showValue(name, value) {
  rows.get(name)?.show(value);
}

function buildRow(parameter) {
  const { name, kind } = parameter;
  const label = element("label", { textContent: name.slice(1), title: parameter.help });
  const row = element("div", { className: "row" }, label);
  row.dataset.row = name;
  label.onclick = () => row.classList.toggle("expanded");
  label.ondblclick = () => { if (kind !== "trigger" && kind !== "command") setValue(name, parameter.default); };
  const build = inputs[kind] ?? (isRange(parameter) ? buildSlider : buildField);
  const show = build(parameter, row) ?? (() => {});
  row.append(element("p", { className: "help", textContent: helpText(parameter) }));
  if (name !== "/learn") row.append(buildLearnButton(name));
  rows.set(name, { parameter, show });
  return row;
}

function isRange({ kind, low, high }) {
  return kind === "float" || (kind === "int" && high - low <= 64);
}

function helpText({ help, unit, live }) {
  return help + (unit ? ` (${unit})` : "") + (live ? "" : "; applied after a background reload");
}

function buildLearnButton(name) {
  const title = "Bind the next OSC, MIDI or DMX message to this parameter";
  const onclick = () => fire("/learn", name);
  return element("button", { type: "button", className: "learn", textContent: "MIDI/OSC learn", title, onclick });
}

/** Append an input over the row's full width. */
function appendWide(row, name, node) {
  node.classList.add("wide");
  node.dataset.name = name;
  row.append(node);
  return node;
}

// Each of these builds a parameter's input in its row and returns the function that shows a value.
const inputs = {
  bool: ({ name }, row) => {
    const button = appendWide(row, name, element("button", { type: "button" }));
    button.onclick = () => setValue(name, !values[name]);
    return value => {
      button.textContent = value ? "on" : "off";
      button.classList.toggle("on", value);
    };
  },
  choice: ({ name, choices }, row) => {
    const options = choices.map(choice => element("option", { value: choice, textContent: choice }));
    const select = appendWide(row, name, element("select", {}, ...options));
    select.onchange = () => setValue(name, select.value);
    return value => { select.value = value; };
  },
  trigger: ({ name }, row) => {
    const button = element("button", { type: "button", textContent: triggerText(name) });
    appendWide(row, name, button).onclick = () => fire(name);
  },
  command: ({ name }, row) => {
    const input = appendWide(row, name, element("input", { placeholder: "type, then press Enter" }));
    input.onkeydown = event => {
      if (event.key !== "Enter" || !input.value) return;
      fire(name, input.value);
      input.value = "";
    };
  },
};

/** The verb of a trigger: "/cue/go" is "Go", "/tempo/tap" is "Tap". */
function triggerText(name) {
  const verb = name.split("/").at(-1);
  return verb[0].toUpperCase() + verb.slice(1);
}

function buildSlider({ name, kind, low, high }, row) {
  const step = kind === "int" ? 1 : (high - low) / 1000;
  const slider = element("input", { type: "range", min: low, max: high, step });
  const number = element("input", { type: "number", min: low, max: high, step: "any" });
  slider.dataset.name = name;
  slider.oninput = () => {
    number.value = slider.value;
    setValue(name, Number(slider.value));
  };
  number.onchange = () => setValue(name, Number(number.value));
  for (const input of [slider, number]) input.setAttribute("aria-label", name);
  row.append(slider, number);
  return value => {
    moveSlider(slider, value);
    if (document.activeElement !== number) number.value = Math.round(value * 1000) / 1000;
  };
}

function buildField({ name, kind }, row) {
  const field = element("input", { type: kind === "int" ? "number" : "text", spellcheck: false });
  const input = appendWide(row, name, field);
  input.onchange = () => setValue(name, kind === "int" ? Number(input.value) : input.value);
  input.onkeydown = event => { if (event.key === "Enter") input.blur(); };
  return value => { if (document.activeElement !== input) input.value = value; };
}
