// What every page has: times in the reader's zone, keys, copying; and what only some have, by what is in the page.
import { times } from "./times.js";
import { keys } from "./keys.js";
import { live } from "./live.js";
import { play } from "./player.js";
import { pick } from "./pick.js";

document.documentElement.classList.add("on");
times(document);
keys();
for (const menu of document.querySelectorAll("details.menu")) menu.open = !matchMedia("(max-width: 46rem)").matches;
addEventListener("click", (e) => {
  for (const open of document.querySelectorAll("details.pop[open]")) if (!open.contains(e.target)) open.open = false;
});
addEventListener("keydown", (e) => {
  if (e.key === "Escape") for (const open of document.querySelectorAll("details.pop[open]")) open.open = false;
});
for (const button of document.querySelectorAll("[data-copy]")) {
  button.addEventListener("click", async () => {
    await navigator.clipboard.writeText(button.parentElement.querySelector("pre").textContent);
    button.setAttribute("aria-label", "Copied");
    button.classList.add("done");
  });
}
const progress = document.querySelector("[data-progress]");
async function follow() {
  const told = await (await fetch(progress.dataset.progress)).json();
  progress.value = told.done;
  for (const name of ["done", "changed"]) document.querySelector(`[data-${name}]`).textContent = told[name];
  if (told.state === "running") setTimeout(follow, 1000); else location.reload();
}
if (progress) follow();
if (document.querySelector("[data-rows]")) live();
if (document.querySelector("[data-player], [data-talk]")) play();
if (document.querySelector("[data-pick]")) pick();
