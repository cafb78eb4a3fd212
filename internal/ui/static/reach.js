// Who reaches whom: a grid of sources and targets, and the policies behind a cell.
import { badge, count, fill, get, h, link, problem, stateOf, time } from "./dom.js";

export const title = "Reachability";

const legend = ["reached", "denied", "lost", "disagree", "unknown", "itself", "apart"];

export function show(root, parameters, signal) {
  const results = h(
    "div",
    { class: "reach", "aria-live": "off" },
    h("p", { class: "dim" }, "Following connections …"),
  );
  fill(
    root,
    h("h1", {}, "Reachability"),
    h(
      "p",
      { class: "lead" },
      "Which sources reach which targets: the policies at both ends, and what the flows in the switches do.",
    ),
    controls(parameters),
    results,
  );
  load(results, parameters, signal);
}

// short is a name without its kind.
const short = (name) => name.replace(/^(pod|service)\//, "");

function controls(p) {
  const field = (name, label, hint) =>
    h(
      "label",
      {},
      label,
      h("input", {
        name,
        value: p[name] ?? "",
        placeholder: hint,
        "data-key": name,
        autocomplete: "off",
        spellcheck: "false",
      }),
    );
  return h(
    "form",
    {
      class: "controls",
      role: "search",
      submit: (event) => {
        event.preventDefault();
        go(new FormData(event.currentTarget));
      },
    },
    h(
      "label",
      {},
      "Targets",
      h(
        "select",
        { name: "targets", "data-key": "targets" },
        h("option", { value: "" }, "Pods"),
        h("option", { value: "services", selected: p.targets === "services" }, "Services"),
      ),
    ),
    field("from", "From contains", "shop/"),
    field("to", "To contains", "shop/"),
    field("port", "At port", "8080/TCP"),
    h("button", { type: "submit" }, "Show"),
  );
}

function go(form) {
  const target = link("reach", Object.fromEntries([...form].map(([name, value]) => [name, String(value).trim()])));
  if (location.hash === target) {
    dispatchEvent(new HashChangeEvent("hashchange"));
  }
  location.hash = target;
}

async function load(results, p, signal) {
  try {
    const { targets = "", from = "", to = "", port = "" } = p;
    const map = await get("reach", { targets, from, to, port, refresh: "1" }, signal);
    fill(results, draw(map, p, signal));
  } catch (error) {
    if (!signal.aborted) {
      fill(results, problem(error));
    }
  }
}

function draw(map, p, signal) {
  const details = h(
    "section",
    { class: "details", "aria-label": "The selected connection", "aria-live": "polite" },
    h("p", { class: "dim" }, "Select a cell to see the policies that decide. Arrow keys move, Enter selects."),
  );
  const counts = Object.fromEntries(
    legend.map((state) => [state, map.cells.flat().filter((c) => c.state === state).length]),
  );
  const hidden = [];
  if (map.allSources > map.sources.length) {
    hidden.push(`${count(map.sources.length)} of ${count(map.allSources)} sources`);
  }
  if (map.allTargets > map.targets.length) {
    hidden.push(`${count(map.targets.length)} of ${count(map.allTargets)} targets`);
  }
  return [
    map.notes.map((note) => problem(note)),
    hidden.length > 0 &&
      h(
        "p",
        { class: "note" },
        `Only ${hidden.join(" and ")} are shown. Name a namespace or a part of a name above.`,
      ),
    h(
      "p",
      { class: "legend" },
      legend.filter((s) => counts[s]).map((s) => badge(s, `${stateOf(s)[1]}: ${count(counts[s])}`)),
      h("span", { class: "asof" }, `as of ${time(map.asOf)}`),
    ),
    map.sources.length && map.targets.length
      ? h("div", { class: "split" }, h("div", { class: "scroll" }, grid(map, details, signal)), details)
      : h("p", { class: "note" }, "Nothing has such a name."),
  ];
}

function grid(map, details, signal) {
  const cells = [];
  const body = map.sources.map((from, i) =>
    h(
      "tr",
      { role: "row" },
      h("th", { scope: "row", role: "rowheader" }, named(from)),
      map.targets.map((to, j) => {
        const { state, why } = map.cells[i][j];
        const [sign, word, kind] = stateOf(state);
        const cell = h(
          "td",
          {
            role: "gridcell",
            tabindex: i || j ? -1 : 0,
            class: `${kind}`,
            title: `${short(from)} to ${short(to)}: ${why || word}`,
            "aria-label": `${short(from)} to ${short(to)}: ${word}`,
            click: () => select(i, j),
          },
          sign,
        );
        cells.push(cell);
        return cell;
      }),
    ),
  );
  const at = (i, j) => cells[i * map.targets.length + j];
  const focus = (i, j) => {
    for (const cell of cells) {
      cell.tabIndex = -1;
    }
    at(i, j).tabIndex = 0;
    at(i, j).focus();
  };
  const select = (i, j) => {
    focus(i, j);
    for (const cell of cells) {
      cell.removeAttribute("aria-selected");
    }
    at(i, j).setAttribute("aria-selected", "true");
    explain(details, map.sources[i], map.targets[j], signal);
  };
  const last = [map.sources.length - 1, map.targets.length - 1];
  const moves = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] };
  return h(
    "table",
    {
      role: "grid",
      class: "grid",
      "aria-label": "Sources in rows, targets in columns",
      keydown: (event) => {
        const n = cells.indexOf(event.target);
        if (n < 0 || event.ctrlKey || event.altKey || event.metaKey) {
          return;
        }
        const [i, j] = [Math.floor(n / map.targets.length), n % map.targets.length];
        if (event.key === "Enter" || event.key === " ") {
          select(i, j);
        } else if (moves[event.key]) {
          const [di, dj] = moves[event.key];
          focus(Math.min(Math.max(i + di, 0), last[0]), Math.min(Math.max(j + dj, 0), last[1]));
        } else if (event.key === "Home" || event.key === "End") {
          focus(i, event.key === "Home" ? 0 : last[1]);
        } else {
          return;
        }
        event.preventDefault();
      },
    },
    h(
      "thead",
      {},
      h(
        "tr",
        { role: "row" },
        h("th", { class: "corner" }, h("span", { class: "hidden" }, "from, to")),
        map.targets.map((to) =>
          h("th", { scope: "col", role: "columnheader" }, h("span", { class: "tilt" }, named(to))),
        ),
      ),
    ),
    h("tbody", {}, body),
  );
}

// named is a name with its namespace in the background.
function named(name) {
  const [, namespace, rest] = short(name).match(/^([^/:]+\/)?(.*)$/);
  return [namespace && h("span", { class: "dim" }, namespace), rest];
}

async function explain(details, from, to, signal) {
  fill(details, h("h2", {}, short(from), " → ", short(to)), h("p", { class: "dim" }, "Evaluating …"));
  try {
    const list = await get("explain", { from, to }, signal);
    fill(
      details,
      h("h2", {}, short(from), " → ", short(to)),
      h(
        "p",
        {},
        h("a", { class: "button", href: link("trace", { from, to }), "data-key": "trace" }, "Follow its packets"),
      ),
      list.map(explanation),
    );
  } catch (error) {
    if (!signal.aborted) {
      fill(details, h("h2", {}, short(from), " → ", short(to)), problem(error));
    }
  }
}

function explanation(x) {
  return [
    x.disagreements.map((text) => problem(text)),
    (x.notes ?? []).map((text) => h("p", { class: "note" }, text)),
    x.paths.map((path) =>
      h(
        "article",
        {},
        h(
          "p",
          {},
          badge(path.outcome),
          " ",
          h("span", { class: "mono" }, path.flows.replace(/^\w+:? ?/, "")),
          x.paths.length > 1 && h("span", { class: "dim" }, ` (${count(path.buckets)} of the choices of endpoints)`),
        ),
        path.ends.map(end),
      ),
    ),
  ];
}

function end(e) {
  return h(
    "div",
    { class: "end" },
    h("h3", {}, `${e.direction} of ${e.pod} on ${e.node}`),
    h("p", {}, "Policies: ", badge(e.policies), "  Flows: ", badge(e.flows)),
    h("p", {}, e.why),
    h(
      "ol",
      { class: "tiers" },
      e.tiers
        .filter((t) => t.policies.length)
        .map((t) =>
          h(
            "li",
            {},
            h("b", {}, t.tier),
            ` ${t.reached ? t.verdict : "not reached"}: ${t.decides}`,
            h(
              "ul",
              {},
              t.policies.map((p) =>
                h(
                  "li",
                  {},
                  p.policy,
                  h(
                    "span",
                    { class: "dim" },
                    p.rule === undefined ? " no rule matches" : ` rule ${p.rule} matches`,
                    `, ${count(p.packets)} packets`,
                  ),
                  p.problem && problem(p.problem),
                ),
              ),
            ),
          ),
        ),
    ),
    e.preview &&
      h(
        "p",
        {},
        "If the staged policies were enforced: ",
        badge(e.preview.policies),
        "  Flows: ",
        badge(e.preview.flows),
        ` ${e.preview.why}`,
      ),
    e.took.length > 0 &&
      h(
        "details",
        {},
        h("summary", {}, "Flows that the packet takes"),
        h(
          "ul",
          { class: "flows" },
          e.took.map((f) =>
            h(
              "li",
              {},
              h("b", {}, f.table),
              " ",
              h("code", {}, `${f.priority} ${f.match || "(any)"} → ${f.actions}`),
              h("span", { class: "dim" }, ` ${f.owner}, ${count(f.packets)} packets`),
            ),
          ),
        ),
      ),
  );
}
