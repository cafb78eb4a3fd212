// The page: a view for each address, and the state of the cluster above it.
import { badge, count, fill, get, h, problem } from "./dom.js";
import * as nodes from "./nodes.js";
import * as pipeline from "./pipeline.js";
import * as reach from "./reach.js";
import * as trace from "./trace.js";

const views = { nodes, reach, pipeline, trace };
const main = document.getElementById("main");
const summary = document.getElementById("summary");
let shown = null;

// every calls a function now and, while the page is visible, again and again until the signal aborts.
export function every(seconds, signal, ask) {
  let timer;
  const again = async () => {
    if (!document.hidden) {
      await ask();
    }
    if (!signal.aborted) {
      timer = setTimeout(again, seconds * 1000);
    }
  };
  signal.addEventListener("abort", () => clearTimeout(timer));
  again();
}

function route() {
  const [name, query] = location.hash.replace(/^#\/?/, "").split("?");
  if (location.hash === "#main") {
    main.focus();
    return;
  }
  const view = views[name] ? name : "nodes";
  const again = shown?.view === view;
  shown?.stop.abort();
  shown = { view, stop: new AbortController() };
  for (const a of document.querySelectorAll("nav a")) {
    if (a.getAttribute("href") === `#/${view}`) {
      a.setAttribute("aria-current", "page");
    } else {
      a.removeAttribute("aria-current");
    }
  }
  document.title = `${views[view].title} · Weft`;
  if (!again) {
    main.replaceChildren();
    scrollTo(0, 0);
  }
  views[view].show(main, Object.fromEntries(new URLSearchParams(query)), shown.stop.signal, every);
}

let last = "";
async function showSummary() {
  try {
    const status = await get("status");
    const well = status.nodes.filter((n) => n.state === "well").length;
    const text = `${count(well)} of ${count(status.nodes.length)} nodes well`;
    if (text !== last) {
      fill(summary, badge(well === status.nodes.length ? "well" : "problems", text));
    }
    last = text;
  } catch (error) {
    if (last !== error.message) {
      fill(summary, problem(error));
    }
    last = error.message;
  }
}

addEventListener("hashchange", route);
route();
every(10, new AbortController().signal, showSummary);
