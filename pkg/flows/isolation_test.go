package flows_test

import (
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"testing"

	"pgregory.net/rapid"

	"github.com/weft-cni/weft/internal/testing/fuzzing"
	"github.com/weft-cni/weft/pkg/flows"
	"github.com/weft-cni/weft/pkg/model"
	"github.com/weft-cni/weft/pkg/nodepath"
	"github.com/weft-cni/weft/pkg/openflow"
)

// TestExclusions excludes owners, pods among them, while pods and policies come and go: the table reached step by step
// is that of a fresh compiler which excludes the same owners, the deltas lead to it, and no pod is open without the
// flows that isolate it.
func TestExclusions(t *testing.T) { rapid.Check(t, exclusions) }

func FuzzExclusions(f *testing.F) { fuzzing.Property(f, exclusions) }

func exclusions(t *rapid.T) {
	s := &model.Snapshot{Self: node("n1", 1), Transport: model.Tunnel(model.Geneve),
		Attachments: map[model.AttachmentKey]model.Attachment{},
		Unknown:     map[model.AttachmentKey]bool{}, Policies: map[model.PolicyID]model.Policy{}}
	s.Paths = nodepath.Resolve(s)
	c, excluded := flows.NewCompiler(), map[model.Owner]bool{}
	wire := map[openflow.Key]openflow.Flow{}
	take := func(d flows.Delta) {
		for _, f := range d.Delete {
			if wire[f.Key] != f.Flow {
				t.Fatalf("delta deletes %s, the switch has %s", f.Flow, wire[f.Key])
			}
			delete(wire, f.Key)
		}
		for _, f := range d.Set {
			wire[f.Key] = f.Flow
		}
	}
	update := func(owners ...model.Owner) {
		for _, o := range owners {
			delete(excluded, o)
		}
		d, failed := c.Update(s, owners)
		if len(failed) > 0 {
			t.Fatal(failed)
		}
		take(d)
	}
	update(model.PipelineOwner, model.SelfOwner)
	for range rapid.IntRange(1, 30).Draw(t, "changes") {
		changes := []string{"pod", "pod gone", "unknown", "policy", "policy gone", "exclude", "exclude", "again"}
		switch rapid.SampledFrom(changes).Draw(t, "change") {
		case "pod":
			a := drawAttachment(t)
			owners := []model.Owner{model.PodOwner(a)}
			if old, ok := s.Attachments[a.Key()]; ok {
				owners = append(owners, model.PodOwner(old))
			}
			s.Attachments[a.Key()] = a
			update(owners...)
		case "pod gone":
			key := drawAttachment(t).Key()
			if old, ok := s.Attachments[key]; ok {
				delete(s.Attachments, key)
				update(model.PodOwner(old))
			}
		case "unknown":
			key := drawAttachment(t).Key()
			s.Unknown[key] = !s.Unknown[key]
			if a, ok := s.Attachments[key]; ok {
				update(model.PodOwner(a))
			}
		case "policy":
			p := drawIsolation(t)
			s.Policies[p.ID] = p
			update(p.ID.Owner())
		case "policy gone":
			p := drawIsolation(t)
			delete(s.Policies, p.ID)
			update(p.ID.Owner())
		case "exclude":
			o := rapid.SampledFrom(inOrder(s)).Draw(t, "owner")
			excluded[o] = true
			take(c.Exclude(o))
		case "again":
			update(rapid.SampledFrom(inOrder(s)).Draw(t, "owner"))
		}

		fresh := flows.NewCompiler()
		if _, failed := fresh.Update(s, flows.Owners(s)); len(failed) > 0 {
			t.Fatal(failed)
		}
		for o := range excluded {
			fresh.Exclude(o)
		}
		if fresh.Desired().String() != c.Desired().String() {
			t.Fatalf("incremental:\n%s\nfull:\n%s", c.Desired(), fresh.Desired())
		}
		desired := c.Desired().Flows
		if len(wire) != len(desired) {
			t.Fatalf("the switch that got the deltas has %d flows of %d", len(wire), len(desired))
		}
		for _, a := range s.Attachments {
			port := openflow.Key{Table: flows.Classifier, Priority: 100,
				Match: openflow.ParseMatch(fmt.Sprintf("in_port=%d", a.OFPort))}
			open := desired[port].Owner == model.PodOwner(a)
			for _, ip := range a.IPs {
				for _, p := range s.Policies {
					if open && !isolates(desired, p, ip) {
						t.Fatalf("%s is open, and %s does not isolate %s", a.Pod, p.ID, ip)
					}
				}
			}
		}
	}
}

func inOrder(s *model.Snapshot) []model.Owner {
	return slices.SortedFunc(slices.Values(flows.Owners(s)), model.Owner.Compare)
}

// isolates tells whether a pod's address is isolated in the directions in which the policy selects it.
func isolates(desired map[openflow.Key]flows.Flow, p model.Policy, ip netip.Addr) bool {
	has := func(table openflow.TableID, v4, v6 string) bool {
		match := "ip," + v4 + "=" + ip.String()
		if ip.Is6() {
			match = "ipv6," + v6 + "=" + ip.String()
		}
		_, ok := desired[openflow.Key{Table: table, Priority: 100, Match: openflow.ParseMatch(match)}]
		return ok
	}
	for _, side := range []*model.PolicySide{p.Ingress, p.Egress} {
		if side == nil || !slices.Contains(side.Pods, ip) {
			continue
		}
		if side == p.Ingress && !has(flows.IngressDefault, "nw_dst", "ipv6_dst") ||
			side == p.Egress && !has(flows.EgressDefault, "nw_src", "ipv6_src") {
			return false
		}
	}
	return true
}

func drawIsolation(t *rapid.T) model.Policy {
	p := model.Policy{ID: policyID(rapid.SampledFrom([]string{"ns/p", "ns/q"}).Draw(t, "policy"))}
	addrs := map[netip.Addr]bool{}
	for range rapid.IntRange(0, 3).Draw(t, "selected") {
		for _, ip := range drawAttachment(t).IPs {
			addrs[ip] = true
		}
	}
	pods := slices.SortedFunc(maps.Keys(addrs), netip.Addr.Compare)
	side := func(id uint32) *model.PolicySide {
		return &model.PolicySide{Pods: pods, Rules: []model.PolicyRule{{ID: id, Pods: pods, AnyPeer: true, AnyPort: true}}}
	}
	if rapid.Bool().Draw(t, "ingress") {
		p.Ingress = side(1)
	}
	if rapid.Bool().Draw(t, "egress") {
		p.Egress = side(2)
	}
	return p
}

func drawAttachment(t *rapid.T) model.Attachment {
	n := rapid.IntRange(1, 4).Draw(t, "container")
	a := model.Attachment{
		ContainerID: fmt.Sprintf("c%d", n), IfName: "eth0",
		Pod:    model.PodRef{Namespace: "ns", Name: rapid.SampledFrom([]string{"a", "b", "c"}).Draw(t, "pod")},
		OFPort: uint32(rapid.IntRange(16, 19).Draw(t, "port")),
		MAC:    model.MAC{0x0a, 0x58, 0, 0, 0, byte(rapid.IntRange(1, 3).Draw(t, "mac"))},
	}
	last := byte(rapid.IntRange(2, 4).Draw(t, "address"))
	if rapid.Bool().Draw(t, "IPv4") {
		a.IPs = append(a.IPs, netip.AddrFrom4([4]byte{10, 244, 1, last}))
	}
	if rapid.Bool().Draw(t, "IPv6") {
		a.IPs = append(a.IPs, netip.MustParseAddr(fmt.Sprintf("fd44:1::%d", last)))
	}
	return a
}
