// The list that follows. New rows never move what one reads: they wait behind one button, unless the list is at its top,
// nothing in it has the focus, and following is on. What comes is put in as text, never as markup.
import { times } from "./times.js";

const MOST = 50;
const words = { delivered: ["ok", "ok"], dead: ["bad", "dead"], pending: ["wait", "wait"], delivering: ["wait", "out"] };
const icons = new URL("icons.svg", import.meta.url).pathname;

function icon(name) {
  const space = "http://www.w3.org/2000/svg";
  const svg = document.createElementNS(space, "svg");
  svg.setAttribute("class", "i");
  svg.setAttribute("aria-hidden", "true");
  svg.append(document.createElementNS(space, "use"));
  svg.firstChild.setAttribute("href", `${icons}#${name}`);
  return svg;
}

function made(tag, kind, text) {
  const one = document.createElement(tag);
  if (kind) one.className = kind;
  if (text !== undefined) one.textContent = text;
  return one;
}

function content(row) {
  if (row.audio) {
    const box = made("div", "sound"), button = made("button", "play js");
    button.type = "button";
    button.setAttribute("aria-label", "Play");
    button.dataset.play = row.audio;
    button.append(icon("play"));
    box.append(button, made("span", "quiet n", row.seconds === null ? "audio" : `${row.seconds.toFixed(1)} s`));
    return box;
  }
  if (row.error) return made("span", "st bad", row.error);
  return made("span", "", row.text ? `“${row.text}”` : "");
}

function tags(row) {
  const box = made("span", "tags");
  for (const one of row.deliveries) {
    const [kind, picture] = words[one.state] ?? ["none", "none"];
    const tag = made("span", `tag ${kind}`);
    tag.append(icon(picture), one.destination, made("span", "sr", ` ${one.state}`));
    box.append(tag);
  }
  if (!row.deliveries.length) box.append(made("span", "quiet", "no destination"));
  return box;
}

function line(template, row) {
  const tr = template.content.cloneNode(true).firstElementChild;
  tr.dataset.id = row.id;
  tr.querySelector("time").dateTime = row.at;
  const link = tr.querySelector("a");
  link.href = `/console/events/${encodeURIComponent(row.id)}`;
  link.textContent = row.type;
  tr.cells[2].textContent = row.source;
  tr.querySelector("bdi").textContent = row.ref ?? "–";
  tr.cells[4].replaceChildren(content(row));
  tr.cells[5].replaceChildren(tags(row));
  times(tr);
  return tr;
}

function sounds(body) {
  const dock = document.querySelector("[data-dock]");
  let playing = null;
  const face = (button, name) => { button.querySelector("use").setAttribute("href", `${icons}#${name}`); button.setAttribute("aria-label", name === "play" ? "Play" : "Pause"); };
  const silent = () => { if (playing) face(playing, "play"); playing = null; };
  dock.addEventListener("ended", silent);
  body.addEventListener("click", (e) => {
    const button = e.target.closest("[data-play]");
    if (!button) return;
    const same = button === playing;
    dock.pause();
    silent();
    if (same) return;
    playing = button;
    face(button, "pause");
    dock.src = button.dataset.play;
    dock.play().catch(silent);
  });
}

export function live() {
  const body = document.querySelector("[data-rows]");
  sounds(body);
  const pill = document.querySelector("[data-live]");
  if (!pill) return;
  const text = document.querySelector("[data-live-text]");
  const newer = document.querySelector("[data-newer]");
  const say = document.querySelector("[data-say]");
  const template = document.querySelector("[data-row-template]");
  let on = true, waiting = [], said = 0, soon = 0;

  const show = () => {
    for (const row of waiting.slice(-MOST)) body.prepend(line(template, row));
    while (body.rows.length > MOST) body.rows[body.rows.length - 1].remove();
    waiting = [];
    newer.hidden = true;
    text.textContent = on ? "live" : "paused";
  };
  const reading = () => !on || scrollY > 120 || body.contains(document.activeElement);
  const told = () => {
    soon = 0;
    if (!waiting.length) return;
    if (Date.now() - said > 10_000) { said = Date.now(); say.textContent = `${waiting.length} newer events`; }
    if (!reading()) return show();
    newer.hidden = false;
    newer.textContent = `${waiting.length} newer: show`;
    text.textContent = on ? "paused while you read" : "paused";
  };
  const source = new EventSource(pill.dataset.live);
  source.onmessage = (e) => {
    waiting.push(JSON.parse(e.data));
    if (waiting.length > 10 * MOST) waiting = waiting.slice(-10 * MOST);
    soon ||= setTimeout(told, 250);
  };
  source.addEventListener("gap", () => { text.textContent = "some are left out: load the page again"; });
  source.onerror = () => { text.textContent = source.readyState === EventSource.CLOSED ? "not live: load the page again" : "connecting"; };
  source.onopen = () => { text.textContent = on ? "live" : "paused"; };
  pill.addEventListener("click", () => {
    on = !on;
    pill.setAttribute("aria-pressed", String(on));
    if (on) show(); else text.textContent = "paused";
  });
  newer.addEventListener("click", () => { show(); body.querySelector("[data-row]")?.focus(); });
}
