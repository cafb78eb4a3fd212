package ui

import (
	"cmp"
	"context"
	"fmt"
	"maps"
	"net/netip"
	"runtime"
	"slices"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/weft-cni/weft/pkg/model"
	"github.com/weft-cni/weft/pkg/openflow"
	"github.com/weft-cni/weft/pkg/trace/walk"
)

// Reach says who reaches whom. Each cell is what `weftctl policy explain` says: the policies, and what the flows do.
type Reach struct {
	AsOf  time.Time `json:"asOf"`
	Notes []string  `json:"notes"`
	// Sources and Targets are as Resolve takes them; Cells has a row for each source.
	Sources []string `json:"sources"`
	Targets []string `json:"targets"`
	Cells   [][]Cell `json:"cells"`
	// AllSources and AllTargets count those that the filters leave, also those that are too many to show.
	AllSources int `json:"allSources"`
	AllTargets int `json:"allTargets"`
}

// State is what becomes of connections.
type State string

// The states. When a connection may take several paths, the first of these that one of them has counts.
const (
	// Disagree is that the flows do not do what the policies say.
	Disagree State = "disagree"
	// Denied is by a policy.
	Denied State = "denied"
	// Lost is for another reason than a policy.
	Lost State = "lost"
	// Unknown is that the policies of an end are not known.
	Unknown State = "unknown"
	// Reached is that the connection is established.
	Reached State = "reached"
	// Itself is that a pod is both ends: its packets meet no switch, and no policy.
	Itself State = "itself"
	// Apart is that both ends have no addresses of one family.
	Apart State = "apart"
)

var worst = []State{Disagree, Denied, Lost, Unknown, Reached, Itself, Apart}

// Cell is what becomes of connections from a source to a target.
type Cell struct {
	State State `json:"state"`
	// Why is the rule, the default or the reason that decides.
	Why string `json:"why"`
}

// maxSide is how many sources, and how many targets, are shown at once.
const maxSide = 60

func (d *data) reach(ctx context.Context, q query) (Reach, error) {
	c, at, err := d.walkable(ctx, q)
	if err != nil {
		return Reach{}, err
	}
	sources, targets := c.sources(), c.podTargets(q.get("port"))
	if q.get("targets") == "services" {
		sources, targets = append(sources, walk.OutsideName), c.serviceTargets()
	}
	sources = filter(sources, q.get("from"))
	targets = filter(targets, q.get("to"))
	r := Reach{AsOf: at, Notes: c.notes, AllSources: len(sources), AllTargets: len(targets)}
	r.Sources, r.Targets = sources[:min(maxSide, len(sources))], targets[:min(maxSide, len(targets))]
	r.Cells = make([][]Cell, len(r.Sources))
	var group errgroup.Group
	group.SetLimit(runtime.GOMAXPROCS(0))
	for i, from := range r.Sources {
		group.Go(func() error {
			r.Cells[i] = make([]Cell, len(r.Targets))
			for j, to := range r.Targets {
				if err := ctx.Err(); err != nil {
					return err
				}
				r.Cells[i][j] = c.cell(from, to)
			}
			return nil
		})
	}
	return r, group.Wait()
}

// filter leaves the names that contain one of the words, in any case; all without words.
func filter(names []string, words string) []string {
	return slices.DeleteFunc(names, func(name string) bool {
		contains := func(word string) bool { return strings.Contains(strings.ToLower(name), strings.ToLower(word)) }
		return words != "" && !slices.ContainsFunc(strings.Fields(words), contains)
	})
}

// sources are the pods that have addresses of their own.
func (c *cluster) sources() []string {
	var list []string
	for _, n := range c.nodes {
		for _, p := range n.Pods {
			if !p.HostNetwork {
				list = append(list, "pod/"+p.Name)
			}
		}
	}
	slices.Sort(list)
	return list
}

// podTargets are the pods at a port, PORT or PORT/PROTOCOL. Without one, it is each port that a Service leads to or
// that has a name, and a ping where there is none.
func (c *cluster) podTargets(port string) []string {
	ports := map[string][]string{}
	add := func(pod string, number uint16, protocol model.Protocol) {
		if text := portText(number, protocol); !slices.Contains(ports[pod], text) {
			ports[pod] = append(ports[pod], text)
		}
	}
	pods := map[netip.Addr]string{}
	for _, n := range c.nodes {
		for _, p := range n.Pods {
			for _, ip := range p.IPs {
				if !p.HostNetwork {
					pods[ip], ports[p.Name] = p.Name, nil
				}
			}
		}
	}
	for _, n := range c.nodes {
		for to, protocol := range endpoints(n) {
			if pod, ok := pods[to.Addr()]; ok {
				add(pod, to.Port(), protocol)
			}
		}
		if n.Policies == nil {
			continue
		}
		for _, p := range n.Policies.Pods {
			name := p.Namespace + "/" + p.Name
			if _, ok := ports[name]; !ok {
				continue
			}
			for _, one := range p.Ports {
				add(name, one.Number, one.Protocol)
			}
		}
	}
	var list []string
	for _, pod := range slices.Sorted(maps.Keys(ports)) {
		own := ports[pod]
		if port != "" {
			own = []string{":" + port}
		}
		slices.SortFunc(own, func(a, b string) int { return cmp.Or(cmp.Compare(len(a), len(b)), strings.Compare(a, b)) })
		for _, text := range own {
			list = append(list, "pod/"+pod+text)
		}
		if len(own) == 0 {
			list = append(list, "pod/"+pod)
		}
	}
	return append(list, walk.OutsideName+":"+cmp.Or(port, "443"))
}

// endpoints are where a node's groups lead to, with the protocols of their Services.
func endpoints(n walk.Node) map[netip.AddrPort]model.Protocol {
	protocols := map[openflow.GroupID]model.Protocol{}
	for _, f := range n.Flows {
		match := openflow.ParseMatch(f.Match)
		number, _ := match.Destination()
		for _, id := range openflow.ParseActions(f.Actions).Groups() {
			for _, p := range []model.Protocol{model.TCP, model.UDP, model.SCTP} {
				if p.Number() == number {
					protocols[id] = p
				}
			}
		}
	}
	list := map[netip.AddrPort]model.Protocol{}
	for _, text := range n.Groups {
		g, err := openflow.ParseGroup(text)
		if err != nil {
			continue // walk.New has said so
		}
		for _, b := range g.Buckets() {
			if to, ok := b.Actions.Translation(); ok && to.Port() != 0 && protocols[g.ID] != "" {
				list[to] = protocols[g.ID]
			}
		}
	}
	return list
}

// serviceTargets are the ports of ClusterIPs, then those of nodes and the external addresses.
func (c *cluster) serviceTargets() []string {
	var inside, outside []string
	for _, n := range c.nodes {
		for _, f := range n.Frontends {
			switch port := portText(f.At.Port(), f.Protocol); {
			case f.Kind == model.ClusterIP:
				inside = append(inside, "service/"+f.Service+port)
			case f.Kind == model.NodePort:
				outside = append(outside, "node/"+n.Name+portText(f.NodePort, f.Protocol))
			case f.At.Addr().Is6():
				outside = append(outside, "["+f.At.Addr().String()+"]"+port)
			default:
				outside = append(outside, f.At.Addr().String()+port)
			}
		}
	}
	slices.Sort(inside)
	slices.Sort(outside)
	return append(slices.Compact(inside), slices.Compact(outside)...)
}

// portText is a port as users write it behind a name.
func portText(number uint16, p model.Protocol) string {
	if p == model.TCP {
		return fmt.Sprintf(":%d", number)
	}
	return fmt.Sprintf(":%d/%s", number, p)
}

// cell says what becomes of connections in all families that both ends have.
func (c *cluster) cell(from, to string) Cell {
	if pod, _, _ := strings.Cut(to, ":"); pod == from {
		return Cell{Itself, "the pod itself: no switch and no policy is on the way"}
	}
	queries, err := c.Resolve(from, to, "")
	if err != nil {
		return Cell{Apart, err.Error()}
	}
	cell := Cell{Reached, ""}
	for _, q := range queries {
		x := c.Explain(q)
		for _, p := range x.Paths {
			one := pathCell(x, p)
			if cell.Why == "" || slices.Index(worst, one.State) < slices.Index(worst, cell.State) {
				cell = one
			}
		}
	}
	return cell
}

// pathCell is what becomes of a connection on one of its paths.
func pathCell(x walk.Explanation, p walk.ExplainedPath) Cell {
	why := "no policy selects either end"
	for _, e := range p.Ends {
		switch {
		case len(x.Disagreements) > 0:
			return Cell{Disagree, x.Disagreements[0]}
		case e.Policies == walk.Denied:
			return Cell{Denied, e.Why}
		case e.Policies == walk.Unknown:
			return Cell{Unknown, e.Why}
		case slices.ContainsFunc(e.Tiers, func(t walk.ExplainedTier) bool { return t.Reached && t.Verdict == "allow" }):
			why = e.Why // of the last end that a policy selects
		}
	}
	if p.Outcome != walk.Reaches {
		return Cell{Lost, p.Flows}
	}
	return Cell{Reached, why}
}
