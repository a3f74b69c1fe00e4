// The list that follows. It is told how many events are newer, and takes the rows of its own page anew, every two seconds at
// most. While one reads (further down, with the focus or a mark in it, or paused) they wait behind one button.
import { times } from "./times.js";

const icons = new URL("icons.svg", import.meta.url).pathname;

function sounds(body) {
  const dock = document.querySelector("[data-dock]");
  let playing = "";
  const face = () => {
    for (const button of body.querySelectorAll("[data-play]")) {
      const on = button.dataset.play === playing;
      button.querySelector("use").setAttribute("href", `${icons}#${on ? "pause" : "play"}`);
      button.setAttribute("aria-label", on ? "Pause" : "Play");
    }
  };
  const begin = (address) => {
    playing = address;
    face();
    dock.pause();
    if (!address) return;
    dock.src = address;
    dock.play().catch(() => { if (playing === address) begin(""); });
  };
  dock.addEventListener("ended", () => begin(""));
  body.addEventListener("click", (e) => {
    const address = e.target.closest("[data-play]")?.dataset.play;
    if (address) begin(address === playing ? "" : address);
  });
  return face;
}

// A page as a document: the policy lets no text become markup, but a page of ours may be fetched as one.
function page(address) {
  return new Promise((done, failed) => {
    const request = new XMLHttpRequest();
    request.responseType = "document";
    request.onload = () => (request.status === 200 ? done(request.response) : failed());
    request.onerror = failed;
    request.open("GET", address);
    request.send();
  });
}

export function live() {
  const body = document.querySelector("[data-rows]");
  const face = sounds(body);
  const pill = document.querySelector("[data-live]");
  if (!pill) return;
  const text = document.querySelector("[data-live-text]");
  const newer = document.querySelector("[data-newer]");
  const say = document.querySelector("[data-say]");
  let on = true, count = 0, more = "", said = 0, taking = false, next = 0, soon = 0;

  const idle = () => { text.textContent = on ? "live" : "paused"; };
  const show = async () => {
    if (taking) return;
    taking = true;
    [count, more, next] = [0, "", Date.now() + 2000];
    try {
      const rows = (await page(location.href)).querySelector("[data-rows]").rows;
      if (rows.length) document.querySelector("[data-none]")?.remove();
      body.replaceChildren(...rows);
      times(body);
      face();
      newer.hidden = true;
      idle();
    } catch { text.textContent = "not live: load the page again"; }
    taking = false;
    if (count) told();
  };
  const reading = () => !on || scrollY > 120 || body.contains(document.activeElement) || !getSelection().isCollapsed;
  const told = () => {
    if (Date.now() - said > 10_000) { said = Date.now(); say.textContent = `${count}${more} newer events`; }
    if (!reading()) {
      if (Date.now() >= next) show();
      else soon ||= setTimeout(() => { soon = 0; if (count) told(); }, next - Date.now());
      return;
    }
    newer.hidden = false;
    newer.textContent = `${count}${more} newer: show`;
    text.textContent = on ? "paused while you read" : "paused";
  };
  const source = new EventSource(pill.dataset.live);
  source.onmessage = (e) => {
    count += parseInt(e.data, 10);
    if (e.data.endsWith("+")) more = "+";
    if (!taking) told();
  };
  source.onerror = () => { text.textContent = source.readyState === EventSource.CLOSED ? "not live: load the page again" : "connecting"; };
  source.onopen = idle;
  pill.addEventListener("click", () => {
    on = !on;
    pill.setAttribute("aria-pressed", String(on));
    if (on) show(); else idle();
  });
  newer.addEventListener("click", async () => { await show(); body.querySelector("[data-row]")?.focus(); });
}
