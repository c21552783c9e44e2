"use strict";
// Everything on the page follows from the table that the show sends: nothing here knows a parameter by heart but the desk's few buttons.
const $ = id => document.getElementById(id);
const rows = new Map();      // name → {parameter, show(value)}
const values = {};           // name → value, as the show last told it
const history = [];          // [fps, latency, skipped] of the last minute, twice a second
let socket = null, held = null, known = "";

const make = (tag, attributes = {}, ...inside) => {
  const node = Object.assign(document.createElement(tag), attributes);
  node.append(...inside);
  return node;
};

// What is wished for is sent at most once a picture: a fader that is dragged says more than anybody can hear.
const wishes = new Map();
function wish(name, value) {
  if (!wishes.size) requestAnimationFrame(() => {
    for (const [name, value] of wishes) if (socket && socket.readyState === 1) socket.send(JSON.stringify({ set: name, value }));
    wishes.clear();
  });
  wishes.set(name, value);
}
const fire = (name, value) => { if (socket && socket.readyState === 1) socket.send(JSON.stringify({ set: name, value })); };

function control(p) {
  const label = make("label", { textContent: p.name.slice(1), title: p.help });
  const row = make("div", { className: "row" }, label);
  row.dataset.row = p.name;
  let show = () => {};
  label.onclick = () => row.classList.toggle("told");
  label.ondblclick = () => { if ("default" in p && p.kind !== "trigger" && p.kind !== "command") wish(p.name, p.default); };
  const wide = node => { node.classList.add("wide"); node.dataset.name = p.name; row.append(node); return node; };
  if (p.kind === "float" || (p.kind === "int" && p.high - p.low <= 64)) {
    const step = p.kind === "int" ? 1 : (p.high - p.low) / 1000;
    const range = make("input", { type: "range", min: p.low, max: p.high, step }), number = make("input", { type: "number", min: p.low, max: p.high, step: "any" });
    range.dataset.name = p.name;
    range.oninput = () => { number.value = range.value; wish(p.name, Number(range.value)); };
    number.onchange = () => wish(p.name, Number(number.value));
    for (const part of [range, number]) part.setAttribute("aria-label", p.name);
    row.append(range, number);
    show = v => { if (held !== range) range.value = v; if (document.activeElement !== number) number.value = Math.round(v * 1000) / 1000; };
  } else if (p.kind === "bool") {
    const button = wide(make("button", { type: "button" }));
    button.onclick = () => wish(p.name, !values[p.name]);
    show = v => { button.textContent = v ? "on" : "off"; button.classList.toggle("on", v); };
  } else if (p.kind === "choice") {
    const select = wide(make("select", {}, ...p.choices.map(c => make("option", { value: c, textContent: c }))));
    select.onchange = () => wish(p.name, select.value);
    show = v => { select.value = v; };
  } else if (p.kind === "trigger") {
    wide(make("button", { type: "button", textContent: "do it" })).onclick = () => fire(p.name);
  } else if (p.kind === "command") {
    const input = wide(make("input", { placeholder: "…, then Enter" }));
    input.onkeydown = e => { if (e.key === "Enter" && input.value) { fire(p.name, input.value); input.value = ""; } };
  } else {
    const input = wide(make("input", { type: p.kind === "int" ? "number" : "text", spellcheck: false }));
    input.onchange = () => wish(p.name, p.kind === "int" ? Number(input.value) : input.value);
    input.onkeydown = e => { if (e.key === "Enter") input.blur(); };
    show = v => { if (document.activeElement !== input) input.value = v; };
  }
  if (p.name !== "/learn") row.append(make("button", { type: "button", className: "learn", textContent: "learn a desk's fader or button", onclick: () => fire("/learn", p.name) }));
  row.append(make("p", { className: "help", textContent: p.help + (p.unit ? ` (${p.unit})` : "") + (p.live ? "" : "; loaded beside the running stream") }));
  rows.set(p.name, { p, show, row });
  return row;
}

function build(table) {
  rows.clear();
  const groups = new Map();
  const heads = new Map();
  for (const p of table) { const head = p.name.split("/")[1]; heads.set(head, (heads.get(head) || 0) + 1); }
  for (const p of table) {
    const head = p.name.split("/")[1], group = heads.get(head) > 1 ? head : "general";
    if (!groups.has(group)) groups.set(group, make("details", { open: ["prompt", "general"].includes(group) }, make("summary", { textContent: group })));
    groups.get(group).append(control(p));
  }
  $("groups").replaceChildren(...groups.values());
  filter();
}

function filter() {
  const wanted = $("filter").value.trim().toLowerCase();
  for (const group of $("groups").children) {
    let any = false;
    for (const row of group.querySelectorAll(".row")) {
      const { p } = rows.get(row.dataset.row);
      const fits = !wanted || p.name.includes(wanted) || p.help.toLowerCase().includes(wanted);
      row.hidden = !fits; row.style.display = fits ? "" : "none";
      any ||= fits;
    }
    group.hidden = !any;
    if (wanted && any) group.open = true;
  }
}

function take(changed) {
  Object.assign(values, changed);
  for (const [name, value] of Object.entries(changed)) {
    rows.get(name)?.show(value);
    for (const button of document.querySelectorAll(`[data-toggle="${name}"]`)) button.classList.toggle("on", value);
    for (const range of document.querySelectorAll(`header [data-name="${name}"]`)) if (held !== range) range.value = value;
  }
  if ("/cue/list" in changed) $("lists").value = changed["/cue/list"];
}

function told(s) {
  const e = s.engine || {};
  $("numbers").textContent = s.engine_ready
    ? `${s.fps.toFixed(1)} fps · ${s.latency_ms.toFixed(0)} ms · ${e.model} ${e.size} on ${e.device}${(e.accelerator || "").startsWith("compiling") ? " · " + e.accelerator : ""}`
    : "the engine is starting …";
  history.push([s.fps, s.latency_ms, e.skipped || 0]);
  if (history.length > 120) history.shift();
  draw();
  const show = s.show, cues = show.cues;
  $("beat").textContent = `${values["/tempo"]?.toFixed(1)} bpm · beat ${(Math.floor(show.beats) % 4 + 4) % 4 + 1}`;
  $("fade").value = show.fade ?? 0;
  $("now").textContent = cues.list ? `${cues.paused ? "paused · " : ""}now ${cues.current || "—"} · next ${cues.next || "end"}` : "no cue list";
  const notices = [
    ...(show.learning ? [`the next message of a desk is bound to ${show.learning}; send "off" to learn to end it`] : []),
    ...Object.entries(show.preset_problems).map(([name, why]) => `preset ${name}: ${why}`), ...show.desk_problems,
    ...(s.engine_starts > 1 && !s.engine_ready ? ["the engine is starting again; the output is held"] : []),
  ];
  $("notice").textContent = notices.slice(0, 6).join("\n");
  $("notice").hidden = !notices.length;
  const mark = JSON.stringify([show.presets, show.cue_lists, cues.list, cues.cues]);
  if (mark !== known) { known = mark; looks(show); }
  for (const item of $("cuelist").children) {
    item.classList.toggle("current", item.dataset.cue === cues.current);
    item.classList.toggle("next", item.dataset.cue === cues.next);
  }
}

function looks(show) {
  $("presets").replaceChildren(...show.presets.map(p => {
    const picture = make("img", { src: `/thumbnails/${encodeURIComponent(p.name)}.jpg?${Date.now()}`, alt: "", loading: "lazy" });
    picture.onerror = () => { picture.style.visibility = "hidden"; };
    const button = make("button", { title: p.name, onclick: () => fire("/preset", p.name) }, picture, make("span", { textContent: `${p.number ?? ""} ${p.title}` }));
    button.dataset.preset = p.name;
    return button;
  }));
  $("lists").replaceChildren(make("option", { value: "", textContent: "no list" }), ...show.cue_lists.map(l => make("option", { value: l, textContent: l })));
  $("lists").value = values["/cue/list"] ?? "";
  $("cuelist").replaceChildren(...show.cues.cues.map(c => {
    const item = make("li", { onclick: () => fire("/cue/goto", c.number) }, make("b", { textContent: c.number }), make("span", { textContent: c.title }));
    item.dataset.cue = c.number;
    return item;
  }));
}

function draw() {
  const canvas = $("graph"), pen = canvas.getContext("2d"), { width, height } = canvas;
  pen.clearRect(0, 0, width, height);
  const skips = history.map((entry, i) => i ? Math.max(0, entry[2] - history[i - 1][2]) : 0);
  const lines = [[history.map(h => h[0]), "#53e0c1", 60], [history.map(h => h[1]), "#f0b94d", 200], [skips, "#7a8cff", 30]];
  for (const [line, colour, least] of lines) {
    const most = Math.max(least, ...line);
    pen.strokeStyle = colour; pen.lineWidth = 2; pen.beginPath();
    line.forEach((v, i) => pen[i ? "lineTo" : "moveTo"](width - (line.length - 1 - i) * width / 119, height - 4 - v / most * (height - 8)));
    pen.stroke();
  }
}

function linked(on) {
  $("link").textContent = on ? "connected" : "not connected; trying again";
  $("link").className = on ? "live" : "away";
  for (const name of ["output", "input"]) $(name).src = on ? `/${name}.mjpg?${Date.now()}` : "";
}

function connect() {
  socket = new WebSocket(`${location.protocol === "https:" ? "wss" : "ws"}://${location.host}/panel`);
  socket.onopen = () => linked(true);
  socket.onclose = () => { linked(false); setTimeout(connect, 1000); };
  socket.onmessage = event => {
    const news = JSON.parse(event.data);
    if (news.table) { build(news.table); $("log").textContent = ""; }
    if (news.values) take(news.values);
    if (news.log?.length) { const log = $("log"); log.textContent = (log.textContent + news.log.map(l => l + "\n").join("")).slice(-20000); log.scrollTop = log.scrollHeight; }
    if (news.status) told(news.status);
  };
}

document.addEventListener("pointerdown", e => { if (e.target.type === "range") held = e.target; });
document.addEventListener("pointerup", () => { held = null; });
for (const button of document.querySelectorAll("[data-toggle]")) button.onclick = () => wish(button.dataset.toggle, !values[button.dataset.toggle]);
for (const button of document.querySelectorAll("[data-fire]")) button.onclick = () => fire(button.dataset.fire);
for (const range of document.querySelectorAll("header [data-name]")) range.oninput = () => wish(range.dataset.name, Number(range.value));
for (const tab of document.querySelectorAll("[data-tab]")) tab.onclick = () => {
  for (const each of document.querySelectorAll("[data-tab]")) each.classList.toggle("on", each === tab);
  for (const part of document.querySelectorAll("[data-part]")) part.classList.toggle("shown", part.dataset.part === tab.dataset.tab);
};
$("lists").onchange = () => wish("/cue/list", $("lists").value);
$("filter").oninput = filter;
$("save").onsubmit = e => { e.preventDefault(); if ($("savename").value) { fire("/preset/save", $("savename").value); $("savename").value = ""; } };
connect();
