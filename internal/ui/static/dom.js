// Elements and data. Text from agents only ever becomes text nodes and attributes that have no effect.

const svgTags = new Set(["svg", "g", "line", "circle", "text", "title", "path"]);

// h makes an element. Properties that are functions are event listeners; null and false ones are left out.
export function h(tag, properties, ...children) {
  const element = svgTags.has(tag)
    ? document.createElementNS("http://www.w3.org/2000/svg", tag)
    : document.createElement(tag);
  for (const [name, value] of Object.entries(properties ?? {})) {
    if (typeof value === "function") {
      element.addEventListener(name, value);
    } else if (value !== null && value !== undefined && value !== false) {
      element.setAttribute(name, value === true ? "" : String(value));
    }
  }
  append(element, children);
  return element;
}

function append(element, children) {
  for (const child of children.flat(Infinity)) {
    if (child !== null && child !== undefined && child !== false) {
      element.append(child instanceof Node ? child : document.createTextNode(String(child)));
    }
  }
}

// fill replaces the content of an element. The focus stays at the element with the same data-key.
export function fill(element, ...children) {
  const focused = element.contains(document.activeElement) ? document.activeElement.dataset.key : undefined;
  element.replaceChildren();
  append(element, children);
  if (focused !== undefined) {
    element.querySelector(`[data-key="${CSS.escape(focused)}"]`)?.focus({ preventScroll: true });
  }
}

// set changes a text only where it differs, so that a selection in it survives.
export function set(element, text) {
  if (element.textContent !== String(text)) {
    element.textContent = String(text);
  }
}

// get asks for data. It fails with the sentence that the answer has for people.
export async function get(name, parameters, signal) {
  let response;
  try {
    response = await fetch(`api/${name}?${new URLSearchParams(parameters ?? {})}`, { signal });
  } catch (error) {
    if (error.name === "AbortError") {
      throw error;
    }
    throw new Error("weftctl does not answer: does it still run?");
  }
  const answer = await response.json().catch(() => ({ error: `weftctl answers with status ${response.status}` }));
  if (!response.ok) {
    throw new Error(answer.error);
  }
  return answer;
}

// link is the address of a view with its parameters.
export function link(view, parameters) {
  const query = new URLSearchParams(Object.entries(parameters ?? {}).filter(([, value]) => value));
  return `#/${view}${query.size ? `?${query}` : ""}`;
}

const numbers = new Intl.NumberFormat("en-US");
export const count = (n) => numbers.format(n);
export const time = (text) => new Date(text).toLocaleTimeString("en-GB");

// states are the sign, the word and the class of each state: color is never the only sign.
const states = {
  well: ["✓", "well", "good"],
  problems: ["!", "problems", "bad"],
  "not ready": ["!", "not ready", "bad"],
  "no answer": ["✕", "no answer", "bad"],
  reachable: ["✓", "reachable", "good"],
  unreachable: ["✕", "unreachable", "bad"],
  configured: ["–", "not probed", "dim"],
  reached: ["✓", "reached", "good"],
  denied: ["✕", "denied by policy", "bad"],
  lost: ["!", "not reached", "warn"],
  disagree: ["≠", "policies and flows differ", "warn"],
  unknown: ["?", "not known", "dim"],
  itself: ["·", "itself", "dim"],
  apart: ["/", "no common address family", "dim"],
  reaches: ["✓", "reaches", "good"],
  refused: ["!", "refused", "warn"],
  dropped: ["✕", "dropped", "bad"],
  allowed: ["✓", "allowed", "good"],
  "not reached": ["–", "not met", "dim"],
};

export const stateOf = (name) => states[name] ?? ["?", name, "dim"];

// badge shows a state as a sign and a word.
export function badge(name, word) {
  const [sign, text, kind] = stateOf(name);
  return h("span", { class: `badge ${kind}` }, h("span", { "aria-hidden": "true" }, sign), " ", word ?? text);
}

export const problem = (error) =>
  h("p", { class: "problem", role: "alert" }, h("b", {}, "! "), error.message ?? error);

// table makes a table whose rows become cards on narrow screens. Columns are {head, number}; rows are lists of cells.
export function table(columns, rows, properties) {
  return h(
    "div",
    { class: "scroll" },
    h(
      "table",
      { class: "stack", ...properties },
      h(
        "thead",
        {},
        h(
          "tr",
          {},
          columns.map((c) => h("th", { scope: "col", class: c.number && "number" }, c.head)),
        ),
      ),
      h(
        "tbody",
        {},
        rows.map((row) =>
          h(
            "tr",
            {},
            row.map((cell, i) => {
              const c = columns[i];
              return h(
                i ? "td" : "th",
                { scope: i ? null : "row", "data-label": c.head, class: c.number ? "number" : c.class },
                cell,
              );
            }),
          ),
        ),
      ),
    ),
  );
}
