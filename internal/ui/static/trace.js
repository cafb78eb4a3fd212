// A connection through the flows of all nodes, step by step.
import { badge, count, fill, get, h, link, problem, set, time } from "./dom.js";

export const title = "Trace";

export async function show(root, p, signal) {
  const from = h("datalist", { id: "from" });
  const to = h("datalist", { id: "to" });
  const result = h("div", { class: "trace" });
  const field = (name, label, hint) =>
    h(
      "label",
      { class: "wide" },
      label,
      h("input", {
        name,
        list: name,
        required: true,
        value: p[name] ?? "",
        placeholder: hint,
        "data-key": name,
        autocomplete: "off",
        spellcheck: "false",
      }),
    );
  fill(
    root,
    h("h1", {}, "Trace"),
    h(
      "p",
      { class: "lead" },
      "The first packet of a new connection and its reply, through the flows that are in the switches now. No packet is sent.",
    ),
    h(
      "form",
      {
        class: "controls",
        submit: (event) => {
          event.preventDefault();
          const form = new FormData(event.currentTarget);
          const target = link("trace", { from: form.get("from").trim(), to: form.get("to").trim() });
          if (location.hash === target) {
            dispatchEvent(new HashChangeEvent("hashchange"));
          }
          location.hash = target;
        },
      },
      field("from", "From", "pod/shop/client"),
      from,
      field("to", "To, with a port", "service/shop/web:80"),
      to,
      h("button", { type: "submit" }, "Trace"),
    ),
    result,
  );
  get("places", {}, signal)
    .then((places) => {
      fill(
        from,
        places.from.map((value) => h("option", { value })),
      );
      fill(
        to,
        places.to.map((value) => h("option", { value })),
      );
    })
    .catch((error) => !signal.aborted && !p.from && fill(result, problem(error)));
  if (!p.from || !p.to) {
    fill(
      result,
      h(
        "p",
        { class: "dim" },
        "Name a pod, a node, outside or an address, and where its connection goes: a Service, too.",
      ),
    );
    return;
  }
  try {
    fill(result, h("p", { class: "dim" }, "Following the packet …"));
    const answer = await get("trace", { from: p.from, to: p.to, refresh: "1" }, signal);
    fill(
      result,
      answer.notes.map((note) => problem(note)),
      answer.traces.map((t) => drawTrace(t, answer.asOf)),
    );
  } catch (error) {
    if (!signal.aborted) {
      fill(result, problem(error));
    }
  }
}

const place = (p) => p.pod || p.node || "outside";

function drawTrace(t, asOf) {
  const body = h("div", {});
  const total = t.paths.reduce((sum, path) => sum + path.buckets, 0);
  const buttons = t.paths.map((path, i) =>
    h(
      "button",
      { type: "button", "aria-pressed": "false", click: () => pick(i) },
      `Path ${i + 1}: ${path.outcome} ${path.at ?? ""} `,
      h("span", { class: "dim" }, `${count(path.buckets)} of ${count(total)} choices`),
    ),
  );
  const pick = (i) => {
    buttons.forEach((b, j) => b.setAttribute("aria-pressed", String(i === j)));
    fill(body, drawPath(t, t.paths[i]));
  };
  pick(0);
  return h(
    "section",
    { "aria-label": "Trace" },
    h(
      "p",
      { class: "verdict" },
      badge(t.verdict),
      " ",
      h("span", { class: "mono" }, `${place(t.query.from)} (${t.query.source}) → ${t.query.to}`),
      h("span", { class: "asof" }, `as of ${time(asOf)}`),
    ),
    t.decided.length > 0 && [
      h("h2", {}, "Decided by"),
      h(
        "ul",
        { class: "chips" },
        t.decided.map((d) => h("li", {}, d)),
      ),
    ],
    t.paths.length > 1 && h("div", { class: "chips", role: "group", "aria-label": "Paths" }, buttons),
    body,
  );
}

function drawPath(t, path) {
  const hops = [
    ...path.hops.map((hop) => ({ hop, reply: false })),
    ...(path.reply ?? []).map((hop) => ({ hop, reply: true })),
  ];
  const steps = [];
  const cards = hops.map(({ hop, reply }, n) => {
    const rows = (hop.steps ?? []).map((s) => {
      const row = stepRow(s, steps.length, () => at(steps.findIndex((o) => o.row === row)));
      steps.push({ row, step: s, hop, n, reply });
      return row;
    });
    if (!rows.length) {
      // a kernel has no flows
      const row = h("li", { class: "step" }, h("span", { class: "where" }, hop.out || "the node's kernel"));
      steps.push({ row, step: { table: "kernel" }, hop, n, reply });
      rows.push(row);
    }
    return h(
      "article",
      { class: "hop" },
      h(
        "h3",
        {},
        reply && h("span", { class: "dim" }, "Reply: "),
        hop.kernel ? "Kernel of " : "Switch of ",
        hop.node,
      ),
      h("p", { class: "mono" }, hop.in),
      h("ol", { class: "steps" }, rows),
      hop.decided.length > 0 &&
        h(
          "ul",
          { class: "chips" },
          hop.decided.map((d) => h("li", {}, d)),
        ),
      hop.out && h("p", { class: "mono" }, hop.out),
    );
  });
  let current = 0;
  const label = h("p", { role: "status", class: "label" });
  const slider = h("input", {
    type: "range",
    min: 1,
    max: steps.length,
    value: 1,
    "aria-label": "Step",
    "data-key": "slider",
    input: () => at(slider.value - 1, true),
  });
  const stations = [];
  const at = (i, still) => {
    if (i < 0 || i >= steps.length) {
      return;
    }
    current = i;
    steps.forEach(({ row }, j) => {
      row.classList.toggle("current", i === j);
      row.classList.toggle("later", j > i);
    });
    const { step, hop, n, reply } = steps[i];
    stations.forEach((s, j) => s.setAttribute("aria-pressed", String(j === n)));
    slider.value = i + 1;
    slider.setAttribute("aria-valuetext", `${step.table} on ${hop.node}`);
    set(label, `Step ${i + 1} of ${steps.length}: ${step.table} on ${hop.node}${reply ? ", reply" : ""}`);
    if (!still) {
      steps[i].row.scrollIntoView({
        block: "nearest",
        behavior: matchMedia("(prefers-reduced-motion: reduce)").matches ? "auto" : "smooth",
      });
    }
  };
  const button = (text, name, target) =>
    h("button", { type: "button", "aria-label": name, click: () => at(target()) }, text);
  const station = (n) => {
    const { hop } = hops[n];
    const b = h(
      "button",
      {
        type: "button",
        class: "station",
        "aria-pressed": "false",
        click: () => at(steps.findIndex((s) => s.n === n)),
      },
      h("small", {}, hop.kernel ? "kernel" : "switch"),
      hop.node,
    );
    stations.push(b);
    return [b, h("span", { class: "arrow", "aria-hidden": "true" }, "→")];
  };
  const arrow = h("span", { class: "arrow", "aria-hidden": "true" }, "→");
  const line = (first, numbers, last) =>
    h(
      "div",
      { class: "line" },
      h("span", { class: "terminal" }, first),
      arrow.cloneNode(true),
      numbers.map(station),
      last,
    );
  const end = h("span", { class: "terminal" }, badge(path.outcome, path.at ?? path.reason ?? path.outcome));
  const back = path.hops.length;
  const draw = h(
    "div",
    {},
    h(
      "div",
      { class: "drawing", "aria-label": "Way of the packet", role: "group" },
      line(
        place(t.query.from),
        path.hops.map((_, n) => n),
        end,
      ),
      path.reply?.length > 0 &&
        line(
          path.at,
          path.reply.map((_, n) => back + n),
          h("span", { class: "terminal" }, place(t.query.from), h("small", {}, " reply")),
        ),
    ),
    h(
      "div",
      {
        class: "stepper",
        role: "group",
        "aria-label": "Steps",
        keydown: (event) => {
          const move = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
          if (move && event.target !== slider) {
            event.preventDefault();
            at(current + move);
          }
        },
      },
      button("First", "First step", () => 0),
      button("Back", "Previous step", () => current - 1),
      button("Next", "Next step", () => current + 1),
      button("Last", "Last step", () => steps.length - 1),
      slider,
      label,
    ),
    cards,
    h(
      "p",
      { class: "verdict" },
      badge(path.outcome),
      " ",
      h("span", { class: "mono" }, path.at ? `${path.at} as ${path.as}` : path.reason),
    ),
  );
  at(0, true);
  return draw;
}

function stepRow(s, number, click) {
  return h(
    "li",
    { class: "step", "data-depth": Math.min(s.depth, 4), click },
    h("span", { class: "where" }, s.table),
    s.flow
      ? h(
          "span",
          { class: "what" },
          h("code", {}, s.flow),
          h("span", { class: "to" }, "→"),
          h("code", {}, s.actions),
          s.owner && h("span", { class: "owner" }, s.owner),
          s.reason && badge("dropped", s.reason),
        )
      : h("span", { class: "what dim" }, s.note || "no flow matches"),
  );
}
