package flows_test

import (
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/weft-cni/weft/pkg/flows"
	"github.com/weft-cni/weft/pkg/model"
	"github.com/weft-cni/weft/pkg/openflow"
)

// inPreview says whether a table is the preview's.
func inPreview(id openflow.TableID) bool { return strings.HasPrefix(flows.TableName(id), "Preview") }

// stagedOf is a policy, staged and under another name.
func stagedOf(p model.Policy, name string) model.Policy {
	p.ID.Name, p.Staged = name, true
	return p
}

// isolatedPod is a cluster whose pod a policy isolates.
func isolatedPod() (*model.Snapshot, model.Policy) {
	pods := addrs("10.244.1.2")
	a := model.Attachment{ContainerID: "c", IfName: "eth0", Pod: model.PodRef{Namespace: "ns", Name: "p"}, OFPort: 16,
		MAC: model.MAC{0x0a, 0x58, 10, 244, 1, 2}, IPs: pods}
	p := model.Policy{ID: policyID("ns/enforced"), Ingress: &model.PolicySide{Pods: pods, Rules: []model.PolicyRule{
		{ID: 1, Pods: pods, Peers: cidrs("10.0.0.0/9", "10.128.0.0/10"), AnyPort: true}}}}
	s := withPolicies(p)
	s.Attachments = map[model.AttachmentKey]model.Attachment{a.Key(): a}
	return s, p
}

// TestStagedChangesOnlyThePreview: a staged policy adds flows to the preview and leads a copy of each packet into it.
// No other flow and no group is different; what the preview has drops nothing and keeps no pod closed.
func TestStagedChangesOnlyThePreview(t *testing.T) {
	s, p := isolatedPod()
	plain, err := flows.Compile(s)
	if err != nil {
		t.Fatal(err)
	}
	for key := range plain.Flows {
		if inPreview(key.Table) {
			t.Errorf("without a staged policy there is %s", plain.Flows[key])
		}
	}
	one := stagedOf(p, "staged")
	s.Policies[one.ID] = one
	staging, err := flows.Compile(s)
	if err != nil {
		t.Fatal(err)
	}
	entry := 0
	for key, f := range staging.Flows {
		was, had := plain.Flows[key]
		switch _, staged := f.Owner.Kind.Policy(); {
		case inPreview(key.Table):
			if f.Reason != "" || staged && f.Isolates.IsValid() {
				t.Errorf("%s: reason %q, isolates %s", f, f.Reason, f.Isolates)
			}
		case key.Table == flows.PolicyEntry && f.Actions.String() == "resubmit(,61),goto_table:48":
			entry++
		case !had || was.Flow != f.Flow || staged:
			t.Errorf("%s of %s is different", f, f.Owner)
		}
	}
	if entry != 1 || len(plain.Flows) >= len(staging.Flows) || len(plain.Groups) != len(staging.Groups) {
		t.Errorf("%d entries, %d flows without and %d with, groups %d and %d", entry, len(plain.Flows), len(staging.Flows),
			len(plain.Groups), len(staging.Groups))
	}
}

// TestStagedCounters: a staged policy is counted in the preview, and its rules are not those of an enforced one.
func TestStagedCounters(t *testing.T) {
	s, p := isolatedPod()
	p.Staged = true
	s.Policies[p.ID] = p
	desired, err := flows.Compile(s)
	if err != nil {
		t.Fatal(err)
	}
	counters, err := flows.Counters(p)
	if err != nil {
		t.Fatal(err)
	}
	found := map[int]bool{}
	for _, c := range counters {
		if _, ok := desired.Flows[c.Key]; ok && c.Staged && inPreview(c.Key.Table) {
			found[c.Index] = true
		}
	}
	if !found[0] || !found[flows.Isolation] {
		t.Errorf("counted in the preview: %v of %v", found, counters)
	}
}

// TestStagedPolicyClosesNothing: the switch rejects a staged policy; its pod and the enforced ones go on.
func TestStagedPolicyClosesNothing(t *testing.T) {
	s, p := isolatedPod()
	one := stagedOf(p, "staged")
	one.Egress = one.Ingress // which no enforced policy isolates
	s.Policies[one.ID], s.Staging = one, true
	c := flows.NewCompiler()
	if _, failed := c.Update(s, flows.Owners(s)); len(failed) > 0 {
		t.Fatal(failed)
	}
	out := c.Exclude(one.Owner())
	for _, f := range slices.Concat(out.Set, out.Delete) {
		if !inPreview(f.Table) {
			t.Errorf("%s is different", f)
		}
	}
	for _, f := range c.Desired().Flows {
		if f.Owner == one.Owner() {
			t.Errorf("%s is left", f)
		}
		if o := c.Part(f); o == one.Owner() {
			t.Errorf("%s goes with %s", f, o)
		}
	}
}

// TestStagedFlowsAreNoLimit: the flows that an enforced policy has in the preview do not count towards its limit.
func TestStagedFlowsAreNoLimit(t *testing.T) {
	if testing.Short() {
		t.Skip("many flows: left to make unit")
	}
	pods := addrs("10.244.1.2", "10.244.1.3")
	rule := model.PolicyRule{ID: 1, Pods: pods, AnyPort: true}
	for i := range 130_000 {
		rule.Peers = append(rule.Peers, openflow.Host(netip.AddrFrom4([4]byte{20, byte(i >> 16), byte(i >> 8), byte(i)})))
	}
	p := model.Policy{ID: policyID("ns/big"), Ingress: &model.PolicySide{Pods: pods, Rules: []model.PolicyRule{rule}}}
	small := stagedOf(square("ns/p", 2, 1, 1, 1), "staged")
	if _, err := flows.Compile(withPolicies(p, small)); err != nil {
		t.Errorf("beside a staged policy: %v", err)
	}
}
