package ui

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/weft-cni/weft/pkg/flows"
	"github.com/weft-cni/weft/pkg/report"
	"github.com/weft-cni/weft/pkg/report/api"
	"github.com/weft-cni/weft/pkg/trace/walk"
)

// How old what agents said may be. Listing the agents of a cluster and connecting to them costs processes; the flows of
// a large switch take its agent seconds to read.
const (
	maxAgentsAge  = 15 * time.Second
	maxStatusAge  = 2 * time.Second
	maxClusterAge = 30 * time.Second
	maxFlowsAge   = time.Second
)

// data is what the page shows, asked for when it is needed.
type data struct {
	list    Agents
	agents  kept[[]Agent]
	status  kept[[]NodeStatus]
	cluster kept[*cluster]

	mu sync.Mutex
	// flows are those of the node that was asked last.
	flows map[string]*kept[*nodeFlows]
}

// cluster is what connections are followed through.
type cluster struct {
	*walk.Cluster
	nodes []walk.Node
	// notes name the nodes that are missing, and flows that cannot be interpreted.
	notes []string
}

type nodeFlows struct {
	node string
	list []report.Flow
}

// query are the parameters of a request.
type query struct{ r *http.Request }

func (q query) get(key string) string { return q.r.URL.Query().Get(key) }

// maxAge is that of what may be answered; 0 when the user wants it asked again.
func (q query) maxAge(most time.Duration) time.Duration {
	if q.get("refresh") != "" {
		return 0
	}
	return most
}

// register adds the paths of the data. Answers are JSON; that of an error is {"error": TEXT} with status 502.
func register(mux *http.ServeMux, d *data) {
	handle(mux, "status", d.nodes)
	handle(mux, "places", d.places)
	handle(mux, "reach", d.reach)
	handle(mux, "explain", d.explain)
	handle(mux, "trace", d.trace)
	handle(mux, "pipeline", d.pipeline)
	handle(mux, "flows", d.tableFlows)
}

func handle[T any](mux *http.ServeMux, name string, answer func(context.Context, query) (T, error)) {
	mux.HandleFunc("/api/"+name, func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		v, err := answer(r.Context(), query{r})
		if err != nil {
			w.WriteHeader(http.StatusBadGateway)
			_ = json.NewEncoder(w).Encode(map[string]string{"error": err.Error()}) // the client is gone
			return
		}
		_ = json.NewEncoder(w).Encode(v) // the client is gone
	})
}

func (d *data) askable(ctx context.Context) ([]Agent, error) {
	agents, _, err := d.agents.get(maxAgentsAge, func() ([]Agent, error) { return d.list(ctx) })
	return agents, err
}

// Status is the answer about nodes.
type Status struct {
	AsOf  time.Time    `json:"asOf"`
	Nodes []NodeStatus `json:"nodes"`
}

// NodeStatus is a node with what is wrong with it.
type NodeStatus struct {
	Node string `json:"node"`
	// State is well, problems, not ready or no answer.
	State    string   `json:"state"`
	Problems []string `json:"problems"`
	// Programmed says that everything is in the switch.
	Programmed bool `json:"programmed"`
	// Status is absent when the agent does not answer.
	Status *report.Status `json:"status,omitempty"`
}

func (d *data) nodes(ctx context.Context, q query) (Status, error) {
	list, at, err := d.status.get(q.maxAge(maxStatusAge), func() ([]NodeStatus, error) {
		agents, err := d.askable(ctx)
		if err != nil {
			return nil, err
		}
		answers := ask(ctx, agents, func(ctx context.Context, c api.Client) (report.Status, error) { return c.Status(ctx) },
			func(s report.Status) string { return s.Node })
		nodes := make([]NodeStatus, len(answers))
		for i, a := range answers {
			nodes[i] = nodeStatus(a)
		}
		return nodes, nil
	})
	return Status{at, list}, err
}

func nodeStatus(a report.Answer[report.Status]) NodeStatus {
	n := NodeStatus{Node: a.Node, State: "no answer", Problems: []string{a.Error}, Status: a.Answer}
	if a.Answer == nil {
		return n
	}
	n.State, n.Problems, n.Programmed = "well", append([]string{}, a.Answer.EveryProblem()...), a.Answer.Programmed()
	switch {
	case !a.Answer.Ready:
		n.State = "not ready"
	case !a.Answer.Well():
		n.State = "problems"
	}
	return n
}

// walkable asks all nodes for what following packets needs.
func (d *data) walkable(ctx context.Context, q query) (*cluster, time.Time, error) {
	return d.cluster.get(q.maxAge(maxClusterAge), func() (*cluster, error) {
		agents, err := d.askable(ctx)
		if err != nil {
			return nil, err
		}
		answers := ask(ctx, agents, func(ctx context.Context, c api.Client) (walk.Node, error) { return c.Trace(ctx) },
			func(n walk.Node) string { return n.Name })
		c := &cluster{notes: []string{}}
		for _, a := range answers {
			if a.Answer == nil {
				c.notes = append(c.notes, fmt.Sprintf("node %s: %s", a.Node, a.Error))
				continue
			}
			c.nodes = append(c.nodes, *a.Answer)
		}
		if len(c.nodes) == 0 {
			return nil, fmt.Errorf("no agent answers: %s", strings.Join(c.notes, "; "))
		}
		if c.Cluster, err = walk.New(c.nodes, walk.Options{}); err != nil {
			c.notes = append(c.notes, err.Error())
		}
		return c, nil
	})
}

// Places are what connections begin and end at, as Resolve takes them.
type Places struct {
	From []string `json:"from"`
	To   []string `json:"to"`
}

func (d *data) places(ctx context.Context, q query) (Places, error) {
	c, _, err := d.walkable(ctx, q)
	if err != nil {
		return Places{}, err
	}
	return Places{c.Places(false), c.Places(true)}, nil
}

// Traces is a connection followed in each family.
type Traces struct {
	AsOf   time.Time    `json:"asOf"`
	Notes  []string     `json:"notes"`
	Traces []walk.Trace `json:"traces"`
}

func (d *data) trace(ctx context.Context, q query) (Traces, error) {
	c, at, err := d.walkable(ctx, q)
	if err != nil {
		return Traces{}, err
	}
	queries, err := c.Resolve(q.get("from"), q.get("to"), "")
	t := Traces{AsOf: at, Notes: c.notes, Traces: make([]walk.Trace, len(queries))}
	for i, one := range queries {
		t.Traces[i] = c.Trace(one)
	}
	return t, err
}

func (d *data) explain(ctx context.Context, q query) ([]walk.Explanation, error) {
	c, _, err := d.walkable(ctx, q)
	if err != nil {
		return nil, err
	}
	queries, err := c.Resolve(q.get("from"), q.get("to"), "")
	list := make([]walk.Explanation, len(queries))
	for i, one := range queries {
		list[i] = c.Explain(one)
	}
	return list, err
}

// Pipeline is the tables of a node's switch in the order a packet meets them.
type Pipeline struct {
	AsOf   time.Time `json:"asOf"`
	Node   string    `json:"node"`
	Tables []Table   `json:"tables"`
	// Owners are those of the most packets.
	Owners []Owner `json:"owners"`
	// OwnerCount counts all owners.
	OwnerCount int `json:"ownerCount"`
}

// Counts are flows and what they have counted.
type Counts struct {
	Flows   int    `json:"flows"`
	Packets uint64 `json:"packets"`
	Bytes   uint64 `json:"bytes"`
	// Dropped are the packets of flows that drop.
	Dropped uint64 `json:"dropped"`
}

func (c *Counts) add(f report.Flow) {
	c.Flows++
	c.Packets += f.Packets
	c.Bytes += f.Bytes
	if f.Reason != "" {
		c.Dropped += f.Packets
	}
}

// Table is a table of the pipeline.
type Table struct {
	ID   uint8    `json:"id"`
	Name string   `json:"name"`
	Doc  string   `json:"doc"`
	Next []string `json:"next"`
	Counts
}

// Owner is an object that flows exist for.
type Owner struct {
	Owner string `json:"owner"`
	Counts
}

// maxOwners is how many owners are listed.
const maxOwners = 200

func (d *data) pipeline(ctx context.Context, q query) (Pipeline, error) {
	of, at, err := d.flowsOf(ctx, q)
	if err != nil {
		return Pipeline{}, err
	}
	p := Pipeline{AsOf: at, Node: of.node, Owners: []Owner{}}
	tables := map[uint8]int{}
	for i, t := range flows.Pipeline {
		one := Table{ID: uint8(t.ID), Name: t.Name, Doc: t.Doc, Next: []string{}}
		for _, next := range t.Next {
			one.Next = append(one.Next, flows.TableName(next))
		}
		p.Tables, tables[one.ID] = append(p.Tables, one), i
	}
	owners := map[string]int{}
	for _, f := range of.list {
		if _, known := tables[f.TableID]; !known { // a foreign flow
			tables[f.TableID] = len(p.Tables)
			p.Tables = append(p.Tables, Table{ID: f.TableID, Name: f.Table, Next: []string{},
				Doc: "Not a table of Weft's pipeline."})
		}
		p.Tables[tables[f.TableID]].add(f)
		i, known := owners[f.Owner]
		if !known {
			i = len(p.Owners)
			owners[f.Owner], p.Owners = i, append(p.Owners, Owner{Owner: f.Owner})
		}
		p.Owners[i].add(f)
	}
	slices.SortFunc(p.Owners, func(a, b Owner) int {
		return cmp.Or(cmp.Compare(b.Packets, a.Packets), strings.Compare(a.Owner, b.Owner))
	})
	p.OwnerCount = len(p.Owners)
	p.Owners = p.Owners[:min(p.OwnerCount, maxOwners)]
	return p, nil
}

// flowsOf are the flows of the node that a request is about. Those of one node are kept.
func (d *data) flowsOf(ctx context.Context, q query) (*nodeFlows, time.Time, error) {
	node, age := q.get("node"), q.maxAge(maxFlowsAge)
	d.mu.Lock()
	of := d.flows[node]
	if of == nil { // forget another node's
		of = &kept[*nodeFlows]{}
		d.flows = map[string]*kept[*nodeFlows]{node: of}
	}
	d.mu.Unlock()
	return of.get(age, func() (*nodeFlows, error) {
		list, err := d.askFlows(ctx, node, "")
		return &nodeFlows{node, list}, err
	})
}

func (d *data) askFlows(ctx context.Context, node, object string) ([]report.Flow, error) {
	agents, err := d.askable(ctx)
	if err != nil {
		return nil, err
	}
	agent, err := agentOf(agents, node)
	if err != nil {
		return nil, err
	}
	list, err := agent.Client.Flows(ctx, object)
	if err != nil {
		return nil, fmt.Errorf("node %s: %s", node, reason(err))
	}
	return list, nil
}

// Flows are flows of a table, of an owner, or of both.
type Flows struct {
	Flows []report.Flow `json:"flows"`
	// Total counts them all.
	Total int `json:"total"`
}

// maxFlows is how many flows are listed.
const maxFlows = 500

func (d *data) tableFlows(ctx context.Context, q query) (Flows, error) {
	table, err := strconv.ParseUint(cmp.Or(q.get("table"), "0"), 10, 8)
	if err != nil {
		return Flows{}, fmt.Errorf("invalid table %q", q.get("table"))
	}
	list, err := d.askFlows(ctx, q.get("node"), q.get("owner"))
	if err != nil {
		return Flows{}, err
	}
	if q.get("table") != "" {
		list = slices.DeleteFunc(list, func(f report.Flow) bool { return uint64(f.TableID) != table })
	}
	f := Flows{Flows: list[:min(len(list), maxFlows)], Total: len(list)}
	if f.Flows == nil {
		f.Flows = []report.Flow{}
	}
	return f, nil
}
