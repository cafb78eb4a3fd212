package scenario

import (
	"fmt"
	"net/netip"
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

// probe is a packet step in one family.
type probe struct {
	step step
	to   netip.AddrPort
}

// world is where a scenario runs.
type world interface {
	// apply makes the objects of the cluster those of the manifests.
	apply(manifests documents) error
	// names are the addresses after the last apply.
	known() names
	// try sends the packets of probes, which are independent of each other.
	try(probes []probe) ([]result, error)
}

// run runs the steps of a scenario in a world.
func (s *Scenario) run(w world, family lab.Family) ([]result, error) {
	objects := documents{}
	text, _ := s.section("objects.yaml") // Read requires it
	if err := objects.add(text); err != nil {
		return nil, err
	}
	if err := w.apply(objects); err != nil {
		return nil, err
	}
	var results []result
	var probes []probe
	flush := func() error {
		more, err := w.try(probes)
		results, probes = append(results, more...), nil
		return err
	}
	for _, one := range s.steps {
		if one.change == "" {
			more, err := w.known().probes(one, family)
			if err != nil {
				return results, fmt.Errorf("step %q: %w", one.line, err)
			}
			probes = append(probes, more...)
			continue
		}
		if err := flush(); err != nil {
			return results, err
		}
		err := s.change(objects, one)
		if err == nil {
			err = w.apply(objects)
		}
		if err != nil {
			return results, fmt.Errorf("step %q: %w", one.line, err)
		}
	}
	return results, flush()
}

// probes are a step in the families in which client and target have addresses. An address has but one.
func (n names) probes(s step, family lab.Family) ([]probe, error) {
	if len(n.of(s.from)) == 0 {
		return nil, fmt.Errorf("there is no pod NAMESPACE/NAME or node %q", s.from)
	}
	var list []probe
	for _, is4 := range []bool{true, false} {
		to, ok, err := n.resolve(s.to, is4)
		if err != nil {
			return nil, err
		}
		if ok && of(n.of(s.from), is4).IsValid() {
			list = append(list, probe{s, to})
		}
	}
	if len(list) == 0 && !s.to.addr.IsValid() {
		return nil, fmt.Errorf("client or target have no address in the family %s", family)
	}
	return list, nil
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
