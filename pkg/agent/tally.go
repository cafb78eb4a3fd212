package agent

import (
	"context"
	"maps"
	"sync"

	"github.com/weft-cni/weft/pkg/flows"
	"github.com/weft-cni/weft/pkg/model"
	"github.com/weft-cni/weft/pkg/openflow"
	"github.com/weft-cni/weft/pkg/report"
)

// tally adds up what flows count: dropped packets by reason, and what policies decide. A sum over flows would fall when
// one of them goes, so each reading of the switch adds what every flow has counted since the last one. What a flow
// counts between the last reading and its end is lost. Any goroutine may use it.
type tally struct {
	mu    sync.Mutex // also while the switch is read: an older reading must not come after a newer one
	last  map[flowID]openflow.Stats
	drops map[flows.Reason]openflow.Stats
	rules map[report.RuleID]openflow.Stats
	// counters are the flows that count for each policy, as long as the policy does not change.
	counters map[model.PolicyID]policyCounters
}

// flowID tells a flow from another that took its place.
type flowID struct {
	openflow.Key
	cookie uint64
}

type policyCounters struct {
	of    model.Policy
	flows []flows.Counter
}

// count reads the switch once for everything that is counted.
func (a *Agent) count(ctx context.Context) (report.Counts, error) {
	a.tally.mu.Lock()
	defer a.tally.mu.Unlock()
	actual, err := a.sw.Dump(ctx)
	if err != nil {
		return report.Counts{}, err
	}
	desired, err := a.loop.Desired(ctx)
	if err != nil {
		return report.Counts{}, err
	}
	return a.tally.add(actual.Flows, desired, a.loop.View().Policies)
}

// add adds what the flows have counted since the last time. It knows no drops and rules but those that exist now.
func (t *tally) add(
	actual []openflow.Entry, desired flows.Desired, policies map[model.PolicyID]model.Policy,
) (report.Counts, error) {
	rules, byFlow, err := t.index(policies)
	if err != nil {
		return report.Counts{}, err
	}
	now := report.Counts{
		Drops: map[flows.Reason]openflow.Stats{}, Rules: make(map[report.RuleID]openflow.Stats, len(rules)),
	}
	maps.Copy(now.Drops, t.drops)
	for id := range rules {
		now.Rules[id] = t.rules[id]
	}
	last := make(map[flowID]openflow.Stats, len(t.last))
	for _, e := range actual {
		want, ok := desired.Flows[e.Key]
		if !ok || want.Flow != e.Flow {
			continue
		}
		counted := byFlow[e.Key]
		if want.Reason == "" && counted == nil {
			continue
		}
		id := flowID{e.Key, e.Cookie}
		last[id] = e.Stats
		since := e.Stats
		if before := t.last[id]; before.Packets <= since.Packets && before.Bytes <= since.Bytes {
			since.Packets -= before.Packets
			since.Bytes -= before.Bytes
		}
		if want.Reason != "" {
			now.Drops[want.Reason] = plus(now.Drops[want.Reason], since)
		}
		for _, rule := range counted {
			now.Rules[rule] = plus(now.Rules[rule], since)
		}
	}
	t.last, t.drops, t.rules = last, now.Drops, now.Rules // never written from here on
	return now, nil
}

// latest is what the last reading of the switch came to.
func (t *tally) latest() report.Counts {
	t.mu.Lock()
	defer t.mu.Unlock()
	return report.Counts{Drops: t.drops, Rules: t.rules}
}

// index says which rules there are, and for which of them each flow counts. A flow counts once for a rule that has it
// twice.
func (t *tally) index(
	policies map[model.PolicyID]model.Policy,
) (rules map[report.RuleID]bool, byFlow map[openflow.Key][]report.RuleID, err error) {
	rules, byFlow = map[report.RuleID]bool{}, map[openflow.Key][]report.RuleID{}
	counters := make(map[model.PolicyID]policyCounters, len(policies))
	for policy, p := range policies {
		known, ok := t.counters[policy]
		if !ok || !samePolicy(known.of, p) {
			known.of = p
			if known.flows, err = flows.Counters(p); err != nil {
				return nil, nil, err
			}
		}
		counters[policy] = known
		for _, c := range known.flows {
			id := report.RuleID{Policy: policy, Rule: c.Rule}
			rules[id] = true
			if list := byFlow[c.Key]; len(list) == 0 || list[len(list)-1] != id {
				byFlow[c.Key] = append(list, id)
			}
		}
	}
	t.counters = counters
	return rules, byFlow, nil
}

// samePolicy says whether two values are one: what they point to is immutable.
func samePolicy(a, b model.Policy) bool {
	return a.Ingress == b.Ingress && a.Egress == b.Egress && a.Log == b.Log && a.Err == b.Err && a.Tier == b.Tier &&
		a.Rank == b.Rank && a.Staged == b.Staged
}

func plus(a, b openflow.Stats) openflow.Stats {
	return openflow.Stats{Packets: a.Packets + b.Packets, Bytes: a.Bytes + b.Bytes}
}
