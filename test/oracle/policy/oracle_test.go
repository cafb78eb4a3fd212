package policy_test

import (
	"cmp"
	"flag"
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"

	gocmp "github.com/google/go-cmp/cmp"
	"github.com/mattfenwick/cyclonus/pkg/connectivity/probe"
	"github.com/mattfenwick/cyclonus/pkg/generator"

	"github.com/weft-cni/weft/pkg/trace/tracetest"
)

var update = flag.Bool("update", false, "write the disagreements of the oracles into docs/policy-oracles.md")

const docFile = "../../../docs/policy-oracles.md"

// disagreement is a kind of cell that an oracle judges otherwise than Weft.
type disagreement struct {
	oracle, family, what string
}

// TestOracles: cyclonus, kube-network-policies, policy.Eval and packets through the flows agree on every cell of every
// case, but for the disagreements that the document lists.
func TestOracles(t *testing.T) {
	found := map[disagreement]map[string]int{} // → case → cells
	total := map[string]int{}
	for _, family := range []string{"IPv4", "IPv6"} {
		first := newState(family == "IPv4")
		target, err := first.resources.GetPod("z", "c")
		if err != nil {
			t.Fatal(err)
		}
		cases := generator.NewTestCaseGenerator(true, target.IP, []string{"x", "y", "z"}, nil, nil).GenerateAllTestCases()
		for number, testCase := range cases {
			name := fmt.Sprintf("%s (%d)", testCase.Description, number+1)
			s := newState(family == "IPv4")
			total[family+" cases"]++
			for i, step := range testCase.Steps {
				for _, action := range step.Actions {
					if err := s.do(action); err != nil {
						t.Fatalf("%s, step %d: %v", name, i+1, err)
					}
				}
				total[family+" steps"]++
				judges := s.judges(t)
				for _, cell := range s.cells(step.Probe) {
					total[family+" cells"]++
					ours := judges.weft(t, name, cell)
					for _, d := range judges.disagreements(t, cell, ours) {
						d.family = family
						if found[d] == nil {
							found[d] = map[string]int{}
						}
						found[d][name]++
					}
				}
			}
		}
	}
	want := document(t, found, total)
	if *update {
		if err := os.WriteFile(docFile, []byte(want), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	got, err := os.ReadFile(docFile)
	if err != nil {
		t.Fatal(err)
	}
	if diff := gocmp.Diff(string(got), want); diff != "" {
		t.Errorf("the oracles' disagreements are not those of %s (-file +found); go test -C test/oracle/policy -update "+
			"rewrites it:\n%s", docFile, diff)
	}
	for key, n := range total {
		t.Logf("%s: %d", key, n)
	}
}

// weft is what Weft promises, having made sure that the flows keep it: the packet does what Eval says, and where it
// passes the answer does, too.
func (j judges) weft(t *testing.T, name string, cell *probe.Job) bool {
	t.Helper()
	p := packet(cell)
	verdict := tracetest.Expected(j.view, p)
	// Cells are evaluated one by one: what one has established is not for the next.
	j.network.Forget()
	if err := tracetest.Check(verdict, j.network.Send(p)); err != nil {
		t.Fatalf("%s: %+v: %v\n%s", name, p, err, j.network.Explain(p))
	}
	if verdict.Allowed && p.Src != p.Dst {
		if err := tracetest.Check(verdict, j.network.Send(p.Reply())); err != nil {
			t.Fatalf("%s: the answer to %+v: %v\n%s", name, p, err, j.network.Explain(p.Reply()))
		}
	}
	return verdict.Allowed
}

const (
	loopback   = "A pod to itself"
	emptyRules = "A list of rules that is empty and not missing"
)

// disagreements names what the oracles say otherwise. Every kind needs a reason in reasons.
func (j judges) disagreements(t *testing.T, cell *probe.Job, ours bool) []disagreement {
	t.Helper()
	kind := fmt.Sprintf("%s to %s, %s %d, which Weft says passes: %t", cell.FromKey, cell.ToKey, cell.Protocol,
		cell.ResolvedPort, ours)
	if cell.FromKey == cell.ToKey && ours {
		kind = loopback
	}
	var list []disagreement
	if j.cyclonus.IsTrafficAllowed(cell.Traffic()).IsAllowed() != ours {
		list = append(list, disagreement{oracle: "cyclonus", what: kind})
	}
	stored := ask(t, j.stored, cell)
	if stored != ours {
		list = append(list, disagreement{oracle: "kube-network-policies", what: kind})
	}
	if ask(t, j.written, cell) != stored {
		list = append(list, disagreement{oracle: "kube-network-policies", what: emptyRules})
	}
	return list
}

// reasons say why Weft does what it does where an oracle says otherwise.
var reasons = map[string]string{
	loopback: "Kubernetes' page Network Policies: other pods are allowed, \"exception: a pod cannot block access to " +
		"itself\". The oracles have no such rule; cyclonus " +
		"has a flag, `--ignore-loopback`, to leave these cells out.",
	emptyRules: "`ingress: []` allows nothing, as a missing list: the API's comment on the field says \"if this field " +
		"is empty then this NetworkPolicy does not allow any traffic\". " +
		"kube-network-policies takes the empty list for \"everything\", but never sees one in a cluster: what the API " +
		"server stores in protocol buffers comes back as missing. " +
		"Given the stored form, it agrees.",
}

func document(t *testing.T, found map[disagreement]map[string]int, total map[string]int) string {
	var b strings.Builder
	b.WriteString("<!-- Made by: go test -C test/oracle/policy -update -->\n# Oracles for NetworkPolicies\n\n" +
		"`test/oracle/policy` has every case that [cyclonus](https://github.com/mattfenwick/cyclonus) generates evaluated " +
		"cell by cell by cyclonus' `matcher`, by the evaluator of\n" +
		"[kube-network-policies](https://sigs.k8s.io/kube-network-policies), by `policy.Eval`, and by packets through the " +
		"compiled flows of two nodes, there and back. Eval and the\n" +
		"flows agree on every cell. A cell is a pod, another (or the same) pod, and a protocol and port.\n\n" +
		"| | Cases | Steps | Cells |\n|---|---|---|---|\n")
	for _, family := range []string{"IPv4", "IPv6"} {
		fmt.Fprintf(&b, "| %s | %d | %d | %d |\n", family, total[family+" cases"], total[family+" steps"],
			total[family+" cells"])
	}
	b.WriteString(
		"\nRandom policies, with labels that are missing, names of ports that mean several numbers, overlapping exceptions " +
			"and ranges, are evaluated by both, too. There they agree with Eval but for\n" +
			"one thing: for cyclonus `NotIn` does not match where the label is missing. For Kubernetes' own selectors, and " +
			"for kube-network-policies, which uses them, it does.\n")
	b.WriteString("\n## Disagreements\n")
	keys := make([]disagreement, 0, len(found))
	for d := range found {
		keys = append(keys, d)
	}
	slices.SortFunc(keys, func(a, b disagreement) int {
		return cmp.Or(cmp.Compare(a.what, b.what), cmp.Compare(a.oracle, b.oracle), cmp.Compare(a.family, b.family))
	})
	last := ""
	for _, d := range keys {
		if d.what != last {
			reason, ok := reasons[d.what]
			if !ok {
				t.Errorf("%s and Weft disagree, for an unknown reason: %s, in %v", d.oracle, d.what, found[d])
			}
			fmt.Fprintf(&b, "\n### %s\n%s\n\n| Oracle | Family | Cases | Cells |\n|---|---|---|---|\n", d.what, reason)
			last = d.what
		}
		cells := 0
		for _, n := range found[d] {
			cells += n
		}
		fmt.Fprintf(&b, "| %s | %s | %d | %d |\n", d.oracle, d.family, len(found[d]), cells)
	}
	return b.String()
}
