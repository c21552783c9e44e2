// The page: header, previews, cues, presets, graph and log. The controls are in controls.js, the link in connection.js.

import { connect, fire, setValue, values } from "/connection.js";
import { buildControls, element, filterControls, moveSlider, showValue } from "/controls.js";
import { askForRegions, showRegions } from "/regions.js";

const MAX_LOG_CHARACTERS = 20000;
const MAX_SAMPLES = 120;  // of the graph: a minute, at two a second
const byId = id => document.getElementById(id);
const all = selector => document.querySelectorAll(selector);
const samples = [];       // [fps, latency in ms, skipped frames in all]
let shownLists = "";      // what presets and cues were last built from, as JSON

window.panel = { values };  // for the browser's console, and for tests

function onMessage(message) {
  if (message.table) {
    buildControls(byId("groups"), message.table, byId("filter").value);
    byId("log").textContent = "";
  }
  if (message.values) showValues(message.values);
  if (message.log?.length) appendLog(message.log);
  if (message.status) showStatus(message.status);
  if (message.regions) showRegions(message.regions);
}

function onLinkChange(connected) {
  byId("link").textContent = connected ? "connected" : "disconnected, reconnecting …";
  byId("link").className = connected ? "live" : "away";
  if (connected) askForRegions();
  for (const name of ["output", "input"]) byId(name).src = connected ? `/${name}.mjpg?${Date.now()}` : "";
}

function showValues(changed) {
  Object.assign(values, changed);
  for (const [name, value] of Object.entries(changed)) {
    showValue(name, value);
    for (const button of all(`[data-toggle="${name}"]`)) button.classList.toggle("on", value);
    for (const slider of all(`header [data-name="${name}"]`)) moveSlider(slider, value);
  }
  if ("/cue/list" in changed) byId("lists").value = changed["/cue/list"];
}

function appendLog(lines) {
  const log = byId("log");
  log.textContent = (log.textContent + lines.map(line => line + "\n").join("")).slice(-MAX_LOG_CHARACTERS);
  log.scrollTop = log.scrollHeight;
}

function showStatus(status) {
  const engine = status.engine || {}, show = status.show;
  byId("numbers").textContent = numbersText(status, engine);
  samples.push([status.fps, status.latency_ms, engine.skipped || 0]);
  if (samples.length > MAX_SAMPLES) samples.shift();
  drawGraph();
  const beat = (Math.floor(show.beats) % 4 + 4) % 4 + 1;
  byId("beat").textContent = `${values["/tempo"]?.toFixed(1)} bpm · beat ${beat}`;
  byId("fade").value = show.fade ?? 0;
  showNotices(status);
  const lists = JSON.stringify([show.presets, show.cue_lists, show.cues.list, show.cues.cues]);
  if (lists !== shownLists) {
    shownLists = lists;
    buildPresets(show.presets);
    buildCues(show);
  }
  showCuePosition(show.cues);
}

function numbersText(status, engine) {
  if (!status.engine_ready) return "the engine is starting …";
  const compiling = (engine.accelerator || "").startsWith("compiling") ? ` · ${engine.accelerator}` : "";
  const model = `${engine.model} ${engine.size} on ${engine.device}`;
  return `${status.fps.toFixed(1)} fps · ${status.latency_ms.toFixed(0)} ms · ${model}${compiling}`;
}

function showNotices(status) {
  const show = status.show, notices = [];
  if (show.learning) {
    notices.push(`Learning: the next control message is bound to ${show.learning}; send "off" to learn to cancel`);
  }
  for (const [name, problem] of Object.entries(show.preset_problems)) notices.push(`preset ${name}: ${problem}`);
  notices.push(...show.desk_problems);
  if (status.engine_starts > 1 && !status.engine_ready) notices.push("The engine is restarting; the output is held");
  byId("notice").textContent = notices.slice(0, 6).join("\n");
  byId("notice").hidden = !notices.length;
}

function showCuePosition(cues) {
  const position = `${cues.paused ? "paused · " : ""}now ${cues.current || "—"} · next ${cues.next || "end"}`;
  byId("now").textContent = cues.list ? position : "no cue list";
  for (const item of byId("cuelist").children) {
    item.classList.toggle("current", item.dataset.cue === cues.current);
    item.classList.toggle("next", item.dataset.cue === cues.next);
  }
}

function buildPresets(presets) {
  byId("presets").replaceChildren(...presets.map(preset => {
    const src = `/thumbnails/${encodeURIComponent(preset.name)}.jpg?${Date.now()}`;
    const image = element("img", { src, alt: "", loading: "lazy" });
    image.onerror = () => { image.style.visibility = "hidden"; };
    const title = element("span", { textContent: `${preset.number ?? ""} ${preset.title}` });
    const onclick = () => fire("/preset", preset.name);
    const button = element("button", { title: preset.name, onclick }, image, title);
    button.dataset.preset = preset.name;
    return button;
  }));
}

function buildCues(show) {
  const option = (value, textContent) => element("option", { value, textContent });
  byId("lists").replaceChildren(option("", "no cue list"), ...show.cue_lists.map(name => option(name, name)));
  byId("lists").value = values["/cue/list"] ?? "";
  byId("cuelist").replaceChildren(...show.cues.cues.map(cue => {
    const number = element("b", { textContent: cue.number }), title = element("span", { textContent: cue.title });
    const item = element("li", { onclick: () => fire("/cue/goto", cue.number) }, number, title);
    item.dataset.cue = cue.number;
    return item;
  }));
}

function drawGraph() {
  const canvas = byId("graph"), pen = canvas.getContext("2d"), { width, height } = canvas;
  const skips = samples.map((sample, i) => i ? Math.max(0, sample[2] - samples[i - 1][2]) : 0);
  const curves = [  // values, colour, least top of the scale
    [samples.map(sample => sample[0]), "#53e0c1", 60],
    [samples.map(sample => sample[1]), "#f0b94d", 200],
    [skips, "#7a8cff", 30],
  ];
  pen.clearRect(0, 0, width, height);
  for (const [curve, colour, leastTop] of curves) {
    const top = Math.max(leastTop, ...curve);
    pen.strokeStyle = colour;
    pen.lineWidth = 2;
    pen.beginPath();
    curve.forEach((value, i) => {
      const x = width - (curve.length - 1 - i) * width / (MAX_SAMPLES - 1);
      pen[i ? "lineTo" : "moveTo"](x, height - 4 - value / top * (height - 8));
    });
    pen.stroke();
  }
}

function selectTab(tab) {
  for (const other of all("[data-tab]")) other.classList.toggle("on", other === tab);
  for (const part of all("[data-part]")) part.classList.toggle("shown", part.dataset.part === tab.dataset.tab);
}

for (const button of all("[data-toggle]")) {
  button.onclick = () => setValue(button.dataset.toggle, !values[button.dataset.toggle]);
}
for (const button of all("[data-fire]")) button.onclick = () => fire(button.dataset.fire);
for (const slider of all("header [data-name]")) {
  slider.oninput = () => setValue(slider.dataset.name, Number(slider.value));
}
for (const tab of all("[data-tab]")) tab.onclick = () => selectTab(tab);
byId("lists").onchange = () => setValue("/cue/list", byId("lists").value);
byId("filter").oninput = () => filterControls(byId("groups"), byId("filter").value);
byId("save").onsubmit = event => {
  event.preventDefault();
  if (!byId("savename").value) return;
  fire("/preset/save", byId("savename").value);
  byId("savename").value = "";
};
connect(onLinkChange, onMessage);
