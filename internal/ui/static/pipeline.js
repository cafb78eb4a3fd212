// The tables of a node's switch in order, with live counters, and the flows of a table or an owner.
import { badge, count, fill, get, h, link, problem, set, table, time } from "./dom.js";

export const title = "Pipeline";

export async function show(root, p, signal, every) {
  let nodes;
  try {
    nodes = (await get("status", {}, signal)).nodes.map((n) => n.node);
  } catch (error) {
    if (!signal.aborted) {
      fill(root, h("h1", {}, "Pipeline"), problem(error));
    }
    return;
  }
  const node = p.node || nodes[0];
  const state = { node, owner: p.owner, live: true, previous: null, rows: null };
  const go = (more) => {
    location.hash = link("pipeline", { node, owner: p.owner, ...more });
  };
  const errors = h("div", {});
  const asOf = h("span", { class: "asof" });
  const live = h(
    "button",
    {
      type: "button",
      "aria-pressed": "true",
      "data-key": "live",
      click: () => {
        state.live = !state.live;
        live.setAttribute("aria-pressed", String(state.live));
      },
    },
    "Live",
  );
  const owner = h("input", {
    name: "owner",
    value: p.owner ?? "",
    list: "owners",
    placeholder: "pod/shop/web",
    "data-key": "owner",
    autocomplete: "off",
    spellcheck: "false",
  });
  const owners = h("datalist", { id: "owners" });
  const content = h("div", {}, h("p", { class: "dim" }, "Reading the switch …"));
  fill(
    root,
    h("h1", {}, "Pipeline", asOf),
    h(
      "p",
      { class: "lead" },
      "The tables of the switch in the order a packet meets them. Counters are of packets since a flow was added.",
    ),
    h(
      "form",
      {
        class: "controls",
        submit: (event) => {
          event.preventDefault();
          go({ owner: owner.value.trim() });
        },
      },
      h(
        "label",
        {},
        "Node",
        h(
          "select",
          { "data-key": "node", change: (event) => go({ node: event.target.value }) },
          nodes.map((n) => h("option", { value: n, selected: n === node }, n)),
        ),
      ),
      h("label", { class: "wide" }, "Flows of", owner, owners),
      h("button", { type: "submit" }, "Show"),
      p.owner && h("button", { type: "button", click: () => go({ owner: "" }) }, "All"),
      live,
    ),
    errors,
    content,
  );
  if (p.owner) {
    live.hidden = true;
    showOwner(content, node, p.owner, signal);
  }
  every(2, signal, async () => {
    if (!state.live || (p.owner && state.previous)) {
      return;
    }
    try {
      const now = await get("pipeline", { node }, signal);
      errors.replaceChildren();
      set(asOf, `as of ${time(now.asOf)}`);
      fill(
        owners,
        now.owners.map((o) => h("option", { value: o.owner })),
      );
      if (!p.owner) {
        update(content, state, now, signal);
      }
      state.previous = now;
    } catch (error) {
      if (!signal.aborted) {
        fill(errors, problem(error));
      }
    }
  });
}

// update draws the tables once, and changes their numbers from then on.
function update(content, state, now, signal) {
  const key = now.tables.map((t) => t.name).join();
  if (state.rows?.key !== key) {
    state.rows = { key, byName: new Map(), owners: h("tbody", {}) };
    fill(content, build(state, now, signal));
  }
  const seconds = state.previous && (new Date(now.asOf) - new Date(state.previous.asOf)) / 1000;
  const rate = (n, before) => (seconds > 0 && before !== undefined && n >= before ? (n - before) / seconds : null);
  const rates = now.tables.map((t) =>
    rate(t.packets, state.previous?.tables.find((o) => o.name === t.name)?.packets),
  );
  const most = Math.max(1, ...rates);
  now.tables.forEach((t, i) => {
    const row = state.rows.byName.get(t.name);
    set(row.flows, count(t.flows));
    set(row.packets, count(t.packets));
    set(row.rate, rates[i] === null ? "–" : count(Math.round(rates[i])));
    row.bar.style.inlineSize = `${(100 * (rates[i] ?? 0)) / most}%`;
    fill(row.dropped, t.dropped ? badge("dropped", count(t.dropped)) : "0");
    row.tr.classList.toggle("empty", !t.flows);
  });
  const before = new Map(state.previous?.owners.map((o) => [o.owner, o.packets]));
  fill(
    state.rows.owners,
    now.owners.slice(0, 50).map((o) => {
      const r = rate(o.packets, before.get(o.owner));
      return h(
        "tr",
        {},
        h(
          "th",
          { scope: "row" },
          h(
            "a",
            { href: link("pipeline", { node: state.node, owner: o.owner }), "data-key": `owner ${o.owner}` },
            o.owner,
          ),
        ),
        h("td", { class: "number wide" }, count(o.flows)),
        h("td", { class: "number" }, count(o.packets)),
        h("td", { class: "number" }, r === null ? "–" : count(Math.round(r))),
        h("td", { class: "number" }, o.dropped ? badge("dropped", count(o.dropped)) : "0"),
      );
    }),
  );
  set(
    state.rows.ownersHead,
    now.ownerCount > 50 ? `Owners with the most packets (50 of ${count(now.ownerCount)})` : "Owners, by packets",
  );
}

function build(state, now, signal) {
  const head = (...names) =>
    h(
      "thead",
      {},
      h(
        "tr",
        {},
        names.map((n, i) => h("th", { scope: "col", class: n === "Flows" ? "number wide" : i > 0 && "number" }, n)),
      ),
    );
  const body = h(
    "tbody",
    {},
    now.tables.map((t) => tableRow(state, t, signal)),
  );
  state.rows.ownersHead = h("h2", {}, "Owners");
  return [
    h(
      "div",
      { class: "scroll" },
      h(
        "table",
        { class: "tables compact" },
        h(
          "thead",
          {},
          h(
            "tr",
            {},
            h("th", { scope: "col", class: "number wide" }, "No."),
            h("th", { scope: "col" }, "Table"),
            ["Flows", "Packets", "Packets/s"].map((n, i) => h("th", { scope: "col", class: i ? "number" : "number wide" }, n)),
            h("th", { class: "bar" }, h("span", { class: "hidden" }, "rate")),
            h("th", { scope: "col", class: "number" }, "Dropped"),
          ),
        ),
        body,
      ),
    ),
    h(
      "section",
      {},
      state.rows.ownersHead,
      h(
        "div",
        { class: "scroll" },
        h("table", { class: "compact" }, head("Owner", "Flows", "Packets", "Packets/s", "Dropped"), state.rows.owners),
      ),
    ),
  ];
}

function tableRow(state, t, signal) {
  const cell = () => h("td", { class: "number" });
  const row = {
    flows: h("td", { class: "number wide" }),
    packets: cell(),
    rate: cell(),
    dropped: cell(),
    bar: h("span", {}),
  };
  const inside = h("td", { colspan: 7 });
  const more = h("tr", { class: "more", hidden: true }, inside);
  const button = h(
    "button",
    {
      type: "button",
      class: "open",
      "aria-expanded": "false",
      "data-key": `table ${t.name}`,
      click: () => {
        more.hidden = !more.hidden;
        button.setAttribute("aria-expanded", String(!more.hidden));
        if (!more.hidden) {
          showFlows(inside, { node: state.node, table: t.id }, signal, [
            h("p", {}, t.doc),
            t.next.length > 0 && h("p", { class: "dim" }, "Goes on to ", t.next.join(", "), "."),
          ]);
        }
      },
    },
    t.name,
  );
  row.tr = h(
    "tr",
    {},
    h("td", { class: "number dim wide" }, t.id),
    h("th", { scope: "row" }, button),
    row.flows,
    row.packets,
    row.rate,
    h("td", { class: "bar", "aria-hidden": "true" }, row.bar),
    row.dropped,
  );
  state.rows.byName.set(t.name, row);
  return [row.tr, more];
}

async function showOwner(content, node, owner, signal) {
  const inside = h("div", {});
  fill(content, h("h2", {}, "Flows of ", h("span", { class: "mono" }, owner), ` on ${node}`), inside);
  await showFlows(inside, { node, owner }, signal);
}

async function showFlows(inside, parameters, signal, above) {
  fill(inside, above, h("p", { class: "dim" }, "Reading flows …"));
  try {
    const { flows, total } = await get("flows", parameters, signal);
    fill(
      inside,
      above,
      total > flows.length &&
        h(
          "p",
          { class: "note" },
          `The first ${count(flows.length)} of ${count(total)} flows; weftctl flows has all.`,
        ),
      flows.length ? flowTable(flows, parameters) : h("p", { class: "note" }, "No flow."),
      groups(flows),
    );
  } catch (error) {
    if (!signal.aborted) {
      fill(inside, above, problem(error));
    }
  }
}

function flowTable(flows, { node, owner }) {
  const columns = [
    { head: "Table" },
    { head: "Prio", number: true },
    { head: "Packets", number: true },
    { head: "Owner" },
    { head: "Match", class: "mono" },
    { head: "Actions", class: "mono" },
  ];
  return table(
    columns,
    flows.map((f) => [
      f.table,
      f.priority,
      count(f.packets),
      f.owner === owner ? f.owner : h("a", { href: link("pipeline", { node, owner: f.owner }) }, f.owner),
      f.match || "(any)",
      f.reason ? [f.actions, " ", badge("dropped", f.reason)] : f.actions,
    ]),
    { class: "stack flows" },
  );
}

function groups(flows) {
  const all = new Map(flows.flatMap((f) => f.groups ?? []).map((g) => [g.id, g]));
  if (!all.size) {
    return null;
  }
  return [
    h("h3", {}, "Groups"),
    table(
      [{ head: "Group" }, { head: "By" }, { head: "Weight", number: true }, { head: "To", class: "mono" }],
      [...all.values()].flatMap((g) =>
        g.buckets.map((b) => [g.id, g.by, b.weight, b.remembered ? `${b.to} (remembered for the client)` : b.to]),
      ),
    ),
  ];
}
