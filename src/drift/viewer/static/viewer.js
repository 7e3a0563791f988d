// Keys, and pages that go on while something is being read or written. All state is in the address.
"use strict";

const follow = (rel) => document.querySelector(`a[rel="${rel}"]`)?.click();

function step(by) {
  const rows = [...document.querySelectorAll("a.row")];
  const at = rows.indexOf(document.activeElement) + (document.activeElement.matches("a.row") || by > 0 ? by : 0);
  const next = rows.length && at >= 0 ? rows[at] : undefined;
  if (next) next.focus();
  else follow(by > 0 ? "next" : "prev");
}

const KEYS = {
  j: () => step(1),
  k: () => step(-1),
  u: () => (document.querySelector('a[rel="up"]') ? follow("up") : follow("home")),
  "/": () => document.querySelector('input[type="search"]')?.focus(),
};

document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  if (event.target.closest("input, select, textarea")) {
    if (event.key === "Escape") event.target.blur();
    return;
  }
  if (KEYS[event.key]) {
    event.preventDefault();
    KEYS[event.key]();
  }
});

// An address says only what is asked for.
document.querySelector("form")?.addEventListener("formdata", ({ formData }) => {
  for (const [key, value] of [...formData]) if (value === "") formData.delete(key);
});

let tag = "";

async function look() {
  const { unfinished, live } = document.body.dataset;
  if (unfinished === undefined && live === undefined) return;
  try {
    const answer = await fetch(location.href, { headers: { "If-None-Match": tag } });
    if (answer.status === 200) {
      tag = answer.headers.get("ETag") ?? "";
      const page = new DOMParser().parseFromString(await answer.text(), "text/html");
      const focused = document.activeElement?.id;
      document.getElementById("live").replaceWith(page.getElementById("live"));
      if (focused) document.getElementById(focused)?.focus({ preventScroll: true });
      for (const name of ["data-unfinished", "data-live"]) {
        document.body.toggleAttribute(name, page.body.hasAttribute(name));
      }
    }
    document.body.classList.remove("stopped");
  } catch {
    document.body.classList.add("stopped");
  }
  setTimeout(look, document.body.dataset.unfinished === undefined ? 2000 : 400);
}

setTimeout(look, document.body.dataset.unfinished === undefined ? 2000 : 100);
