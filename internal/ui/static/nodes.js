// Nodes and the paths between them.
import { badge, count, fill, get, h, link, problem, stateOf, table, time } from "./dom.js";

export const title = "Nodes";

export function show(root, parameters, signal, every) {
  let last = "";
  every(5, signal, async () => {
    try {
      const status = await get("status", {}, signal);
      const text = JSON.stringify(status.nodes.map((n) => ({ ...n, status: { ...n.status, api: null } })));
      if (text !== last) {
        fill(root, draw(status));
        last = text;
      }
    } catch (error) {
      if (!signal.aborted) {
        last = "";
        fill(root, h("h1", {}, "Nodes"), problem(error));
      }
    }
  });
}

function draw({ nodes, asOf }) {
  const known = nodes.filter((n) => n.status);
  const sum = (of) => known.reduce((total, n) => total + of(n.status), 0);
  const drops = sum((s) => s.drops.reduce((total, d) => total + d.packets, 0));
  const problems = nodes.flatMap((n) => n.problems.map((text) => [n.node, text]));
  return [
    h("h1", {}, "Nodes", h("span", { class: "asof" }, `as of ${time(asOf)}`)),
    h(
      "dl",
      { class: "tiles" },
      tile("Nodes", nodes.length),
      tile(
        "Pods",
        sum((s) => s.pods.length),
      ),
      tile(
        "Flows",
        sum((s) => s.flows.flows),
      ),
      tile("Problems", problems.length, problems.length && "bad"),
      tile("Packets dropped", drops),
    ),
    problems.length > 0 &&
      h(
        "section",
        { "aria-labelledby": "problems" },
        h("h2", { id: "problems" }, "Problems"),
        h(
          "ul",
          { class: "problems" },
          problems.map(([node, text]) => h("li", {}, h("b", {}, node), " ", text)),
        ),
      ),
    h("section", { "aria-labelledby": "table" }, h("h2", { id: "table" }, "What each node has"), nodeTable(nodes)),
    nodes.length > 1 &&
      h(
        "section",
        { "aria-labelledby": "paths" },
        h("h2", { id: "paths" }, "Paths between nodes"),
        h("div", { class: "paths" }, nodes.length <= 12 && ring(nodes), matrix(nodes)),
      ),
    drops > 0 &&
      h(
        "section",
        { "aria-labelledby": "drops" },
        h("h2", { id: "drops" }, "Dropped packets, by reason"),
        dropTable(known),
      ),
  ];
}

const tile = (name, n, kind) => h("div", { class: kind || null }, h("dt", {}, name), h("dd", {}, count(n)));

function nodeTable(nodes) {
  const columns = [
    { head: "Node" },
    { head: "State" },
    { head: "Agent" },
    { head: "Pods", number: true },
    { head: "Flows", number: true },
    { head: "Services", number: true },
    { head: "Policies", number: true },
    { head: "Address" },
    { head: "Pod CIDRs" },
    { head: "Tunnel" },
    { head: "MTU", number: true },
  ];
  return table(
    columns,
    nodes.map((n) => {
      const s = n.status;
      if (!s) {
        return [n.node, badge(n.state), ...Array(9).fill("–")];
      }
      return [
        h("a", { href: link("pipeline", { node: n.node }), "data-key": `node ${n.node}` }, n.node),
        badge(n.state),
        s.version,
        count(s.pods.length),
        `${count(s.flows.flows)}${n.programmed ? "" : " (changing)"}`,
        count(s.objects.services),
        count(s.objects.policies),
        s.addresses.join(", "),
        s.podCIDRs.join(", "),
        s.tunnelType,
        s.mtu,
      ];
    }),
  );
}

// pathOf is the state of the path from a node to another, as the first one sees it.
function pathOf(from, to) {
  const peer = from.status?.nodes.find((n) => n.name === to.node);
  if (!peer) {
    return ["unknown", from.status ? "the node does not know this peer" : "the agent does not answer"];
  }
  if (peer.unreachable) {
    return ["unreachable", peer.unreachable];
  }
  return peer.rttSeconds ? ["reachable", `${(peer.rttSeconds * 1000).toFixed(1)} ms`] : ["configured", "not probed"];
}

function matrix(nodes) {
  return h(
    "div",
    { class: "scroll" },
    h(
      "table",
      { class: "matrix" },
      h(
        "thead",
        {},
        h(
          "tr",
          {},
          h("th", { scope: "col" }, "from \\ to"),
          nodes.map((n) => h("th", { scope: "col" }, n.node)),
        ),
      ),
      h(
        "tbody",
        {},
        nodes.map((from) =>
          h(
            "tr",
            {},
            h("th", { scope: "row" }, from.node),
            nodes.map((to) => {
              if (from === to) {
                return h("td", { class: "self" }, h("span", { class: "hidden" }, "itself"));
              }
              const [state, text] = pathOf(from, to);
              const [sign, word, kind] = stateOf(state);
              return h(
                "td",
                { title: text },
                h("span", { class: kind }, sign, h("span", { class: "hidden" }, ` ${word}`)),
                " ",
                h("small", {}, state === "reachable" ? text : word),
              );
            }),
          ),
        ),
      ),
    ),
  );
}

// ring draws nodes on a circle, and a line for each pair: the worse of both directions.
function ring(nodes) {
  const at = nodes.map((_, i) => {
    const angle = (i / nodes.length) * 2 * Math.PI - Math.PI / 2;
    return [200 + 130 * Math.cos(angle), 160 + 110 * Math.sin(angle)];
  });
  const order = ["unreachable", "unknown", "configured", "reachable"];
  const lines = [];
  let broken = 0;
  nodes.forEach((a, i) =>
    nodes.slice(i + 1).forEach((b, k) => {
      const both = [pathOf(a, b)[0], pathOf(b, a)[0]];
      const state = order.find((s) => both.includes(s));
      const [[x1, y1], [x2, y2]] = [at[i], at[i + 1 + k]];
      broken += state === "unreachable";
      lines.push(h("line", { x1, y1, x2, y2, class: `path ${stateOf(state)[2]}` }));
      if (state === "unreachable") {
        lines.push(h("text", { x: (x1 + x2) / 2, y: (y1 + y2) / 2 + 6, class: "cut" }, "✕"));
      }
    }),
  );
  return h(
    "svg",
    {
      viewBox: "0 0 400 320",
      role: "img",
      class: "ring",
      "aria-label": `${nodes.length} nodes; ${broken} of the paths between two of them are broken. The table has them.`,
    },
    lines,
    nodes.map((n, i) =>
      h(
        "g",
        { class: stateOf(n.state)[2] },
        h("circle", { cx: at[i][0], cy: at[i][1], r: 15 }),
        h("text", { x: at[i][0], y: at[i][1] + 5, class: "sign" }, stateOf(n.state)[0]),
        h("text", { x: at[i][0], y: at[i][1] + (at[i][1] < 120 ? -22 : 32), class: "name" }, n.node),
      ),
    ),
  );
}

function dropTable(nodes) {
  const rows = nodes.flatMap((n) =>
    n.status.drops.filter((d) => d.packets).map((d) => [d.reason, n.node, count(d.packets), count(d.bytes)]),
  );
  return table(
    [{ head: "Reason" }, { head: "Node" }, { head: "Packets", number: true }, { head: "Bytes", number: true }],
    rows,
  );
}
