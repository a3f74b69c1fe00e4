// Single keys (WCAG 2.1.4: they can be switched off, and never act while one types).
const places = { o: "", e: "events", d: "deliveries", r: "rejections" };
const name = "receiver.keys";
const allowed = () => { try { return localStorage.getItem(name) !== "off"; } catch { return true; } };

export function keys() {
  const help = document.getElementById("help");
  if (!help) return;
  const box = help.querySelector("[data-keys]");
  box.checked = allowed();
  box.addEventListener("change", () => { try { localStorage.setItem(name, box.checked ? "on" : "off"); } catch { /* private mode */ } });
  document.querySelector("[data-help]").addEventListener("click", () => help.showModal());

  const move = (by) => {
    const all = [...document.querySelectorAll("[data-row]")];
    if (!all.length) return;
    const at = all.findIndex((a) => a.closest("tr").contains(document.activeElement));
    all[Math.min(all.length - 1, Math.max(0, at < 0 ? 0 : at + by))].focus();
  };
  let before = "";
  addEventListener("keydown", (e) => {
    if (!allowed() || e.ctrlKey || e.metaKey || e.altKey || help.open) return;
    if (e.target.closest("input, select, textarea")) return;
    const after = before;
    before = "";
    if (after === "g" && e.key in places) { location.assign(`/console/${places[e.key]}`); return; }
    const row = document.activeElement?.closest("tr");
    const acts = {
      "/": () => document.querySelector("[data-find]").focus(),
      "?": () => help.showModal(),
      j: () => move(1),
      k: () => move(-1),
      x: () => row?.querySelector("[data-pick]")?.click(),
      p: () => (document.querySelector("[data-toggle]") ?? row?.querySelector("[data-play]"))?.click(),
      ".": () => document.querySelector("[data-live]")?.click(),
      g: () => { before = "g"; },
    };
    if (e.key in acts) { e.preventDefault(); acts[e.key](); }
  });
}
