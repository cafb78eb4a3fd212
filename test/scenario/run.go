package scenario

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"text/tabwriter"

	"github.com/weft-cni/weft/test/lab"
)

// result is a packet step as it went.
type result struct {
	step step
	got  string
	// detail is the trace of packets, for a step that went otherwise than expected.
	detail string
}

func (r result) ok() bool { return r.got == r.step.verdict.String() }

// world is where a scenario runs.
type world interface {
	// apply makes the objects of the cluster those of the manifests.
	apply(manifests string) error
	// try runs a packet step in a family. It returns false when the step is not about the family.
	try(s step, is4 bool) (result, bool, error)
}

// run runs the steps of a scenario in a world.
func (s *Scenario) run(w world, family lab.Family) ([]result, error) {
	objects := documents{}
	text, _ := s.section("objects.yaml") // Read requires it
	if err := objects.add(text); err != nil {
		return nil, err
	}
	if err := w.apply(objects.text()); err != nil {
		return nil, err
	}
	var results []result
	for _, one := range s.steps {
		if one.change != "" {
			if err := s.change(objects, one); err != nil {
				return results, fmt.Errorf("step %q: %w", one.line, err)
			}
			if err := w.apply(objects.text()); err != nil {
				return results, fmt.Errorf("step %q: %w", one.line, err)
			}
			continue
		}
		tried := false
		for _, is4 := range []bool{true, false} {
			if is4 && family == lab.IPv6 || !is4 && family == lab.IPv4 || one.to.addr.IsValid() && one.to.addr.Is4() != is4 {
				continue
			}
			r, ok, err := w.try(one, is4)
			if err != nil {
				return results, fmt.Errorf("step %q: %w", one.line, err)
			}
			if ok {
				tried = true
				results = append(results, r)
			}
		}
		if !tried && !one.to.addr.IsValid() {
			return results, fmt.Errorf("step %q: client or target have no address in the family %s", one.line, family)
		}
	}
	return results, nil
}

func (s *Scenario) change(objects documents, one step) error {
	if one.change == "apply" {
		text, _ := s.section(one.what) // Read requires it
		return objects.add(text)
	}
	if _, ok := objects[one.what]; !ok {
		return fmt.Errorf("there is no %s", one.what)
	}
	delete(objects, one.what)
	return nil
}

// describe is a table of expected and observed verdicts, with the traces of those that differ; empty when none does.
func describe(results []result) string {
	if !slices.ContainsFunc(results, func(r result) bool { return !r.ok() }) {
		return ""
	}
	var b, details strings.Builder
	w := tabwriter.NewWriter(&b, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "\tPACKETS\tEXPECTED\tOBSERVED")
	for _, r := range results {
		mark := ""
		if !r.ok() {
			mark = "✗"
			fmt.Fprintf(&details, "\n%s\n%s", r.step.line, r.detail)
		}
		packets, _, _ := strings.Cut(r.step.line, " "+string(r.step.verdict.kind))
		fmt.Fprintf(w, "%s\t%s\t%s\t%s\n", mark, strings.Join(strings.Fields(packets), " "), r.step.verdict, r.got)
	}
	_ = w.Flush() // into memory
	return b.String() + details.String()
}

// maxBuckets bounds how many choices of a group are followed.
const maxBuckets = 1024

// try follows connections for every choice of the Service's group.
func (n *network) try(s step, is4 bool) (result, bool, error) {
	from, err := n.place(s.from)
	if err != nil {
		return result{}, false, err
	}
	to, ok, err := n.resolve(s.to, is4)
	if err != nil || !ok || !of(n.of(s.from), is4).IsValid() {
		return result{}, false, err
	}
	r := result{step: s}
	seen := verdicts{}
	for i := 0; i == 0 || i < min(seen.buckets, maxBuckets); i++ {
		c := n.conversation(i, false)
		e := c.connect(from, to, s.to.protocol, clientPort)
		seen.add(n.names, s.verdict, e)
		seen.buckets = max(seen.buckets, c.most)
		if s.verdict.sticky && e.outcome == reaches {
			if again := c.connect(from, to, s.to.protocol, clientPort+1); again.at != e.at {
				seen.unstable = append(seen.unstable, fmt.Sprintf("%s, then %s", e.at, again.at))
			}
		}
	}
	if r.got = seen.String(); !r.ok() {
		for i := range min(max(1, seen.buckets), 3) {
			c := n.conversation(i, true)
			c.connect(from, to, s.to.protocol, clientPort)
			r.detail += c.log.String() + "\n"
		}
	}
	return r, true, nil
}

// clientPort is the source port: one that no rule of nodes changes.
const clientPort = 40000

// place finds where a client sends from.
func (n *network) place(client string) (place, error) {
	if p, ok := n.pods[client]; ok {
		return place{p, p.node}, nil
	}
	for _, one := range n.nodes {
		if one.name == client {
			return place{nil, one}, nil
		}
	}
	if client == outsideName {
		return place{}, nil
	}
	return place{}, fmt.Errorf("there is no pod NAMESPACE/NAME or node %q", client)
}

// verdicts collects what became of several connections of one step.
type verdicts struct {
	pods     map[string]bool
	sources  map[string]bool // as which client they are seen
	others   map[string]bool // verdicts that are not reaches
	unstable []string
	sticky   bool
	buckets  int
}

func (v *verdicts) add(names names, want verdict, e end) {
	if v.pods == nil {
		v.pods, v.sources, v.others = map[string]bool{}, map[string]bool{}, map[string]bool{}
	}
	if e.outcome != reaches {
		v.others[verdict{kind: e.outcome, reason: e.reason}.String()] = true
		return
	}
	v.pods[e.at.String()] = true
	v.sticky = want.sticky
	if source := e.got.src.Addr(); want.source != "" {
		if slices.Contains(names.of(want.source), source) {
			v.sources[want.source] = true
		} else {
			v.sources[source.String()] = true
		}
	}
}

func (v *verdicts) String() string {
	var list []string
	if len(v.pods) > 0 {
		all := verdict{kind: reaches, pods: slices.Sorted(maps.Keys(v.pods)), sticky: v.sticky && len(v.unstable) == 0}
		all.source = strings.Join(slices.Sorted(maps.Keys(v.sources)), " and ")
		list = append(list, all.String())
	}
	list = append(list, slices.Sorted(maps.Keys(v.others))...)
	return strings.Join(append(list, v.unstable...), " or ")
}
