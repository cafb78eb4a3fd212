package scenario

import (
	"maps"
	"net/netip"
	"slices"
	"strings"

	"github.com/weft-cni/weft/pkg/trace/walk"
)

// verdicts collects what became of several connections of one step.
type verdicts struct {
	want     verdict
	pods     map[string]bool
	sources  map[string]bool // as which client they are seen
	others   map[string]bool // verdicts that are not reaches
	unstable []string
}

func newVerdicts(want verdict) *verdicts {
	return &verdicts{want: want, pods: map[string]bool{}, sources: map[string]bool{}, others: map[string]bool{}}
}

// add notes how a connection ended.
func (v *verdicts) add(n names, e walk.End) {
	if e.Outcome == walk.Reaches {
		v.reached(n, e.At.String(), e.Got.Src.Addr())
		return
	}
	v.other(outcome(e.Outcome), e.Reason)
}

// reached notes a connection that a pod took.
func (v *verdicts) reached(n names, pod string, source netip.Addr) {
	v.pods[pod] = true
	switch {
	case v.want.source == "":
	case slices.Contains(n.of(v.want.source), source):
		v.sources[v.want.source] = true
	default:
		v.sources[source.String()] = true
	}
}

// other notes a connection that no pod took.
func (v *verdicts) other(kind outcome, reason string) {
	v.others[verdict{kind: kind, reason: reason}.String()] = true
}

// firsts is String without what is known only of a client's later connections.
func (v *verdicts) firsts() string {
	one := *v
	one.unstable = nil
	return one.String()
}

func (v *verdicts) String() string {
	var list []string
	if len(v.pods) > 0 {
		all := verdict{kind: reaches, pods: slices.Sorted(maps.Keys(v.pods)), sticky: v.want.sticky && len(v.unstable) == 0}
		all.source = strings.Join(slices.Sorted(maps.Keys(v.sources)), " and ")
		list = append(list, all.String())
	}
	list = append(list, slices.Sorted(maps.Keys(v.others))...)
	return strings.Join(append(list, v.unstable...), " or ")
}
